"""The thesis' Figures 5.1 to 5.9, of any checkpoint on any dataset of this project.

    python training/figures.py --dataset_name lung-ct-small-data --output_dir figures
    python training/figures.py --dataset_name lung-ct-small-data --output_dir figures --baselines LDM=ldm/pipeline SPADE=spade-gan/pipeline \
        --which 5.2 5.3

* 5.1 slices and what the autoencoder makes of them;
* 5.2, 5.3 baselines and LSDM, unguided and guided by the true ratings, on the same maps: whole slices, nodules;
* 5.4, 5.5 gradients of the malignancy classifier for "benign" and "malignant": to the image, and to the latents as guidance applies them;
* 5.6 settings of guidance: one feature, all, sequential, joint;
* 5.7 each feature at its ratings; 5.8 the ladder of scales; 5.9 benign and malignant at one scale, and their difference.

Nodules are sampled in a window of `--window` pixels around them; all pictures of a nodule start from the same noise. CT in the lung window
(level -600 HU, width 1500 HU) unless a panel says otherwise. Images are kept in `<output_dir>/images`: a figure drawn again costs nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lsdm_diffusers import find_nodules, small_checkpoint
from lsdm_diffusers.data.dataset import decode_image
from lsdm_diffusers.evaluation.gradients import image_gradient, latent_gradient, noisy_nodules
from lsdm_diffusers.evaluation.images import (
    check_run,
    data_identity,
    image_folder,
    make_missing,
    model_paths,
    noise_seed,
    open_pipeline,
    read_hu,
    sample_hu,
)
from lsdm_diffusers.evaluation.slices import read_slice
from lsdm_diffusers.evaluation.windows import centred_window, nodule_windows, sample_windows
from lsdm_diffusers.hounsfield import HU_MAX, HU_MIN, scaled_hu
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.labels import PALETTE
from lsdm_diffusers.nodule_crop import CROP
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.training.data import add_data_arguments, open_splits, rows_of_kind

LUNG_WINDOW = {"cmap": "gray", "vmin": -1350, "vmax": 150}
KINDS = ("benign", "malignant")
HU_PER_UNIT = (HU_MAX - HU_MIN) / 2


class Setting:
    """What the figures are drawn from: flags, pipelines, and the slices and nodules that are shown."""

    def __init__(self, args):
        self.args, self.accelerator = args, Accelerator(mixed_precision=args.mixed_precision)
        self.pipe = open_pipeline(args.pretrained_model_name_or_path or small_checkpoint()).to(self.accelerator.device)
        self.baselines = {
            name: open_pipeline(path).to(self.accelerator.device) for name, path in model_paths(args.baselines).items()
        }
        splits = open_splits(args)
        listing = rows_of_kind(splits[args.split], lambda kind: kind != "nodule").filter(bool, input_columns="nodules")
        self.rows = [{**listing[i], "number": i} for i in spread(len(listing), args.num_maps)]
        clear = [w for w in nodule_windows(splits[args.split], args.window) if w.mask().sum() >= args.min_area]
        self.windows = [clear[i] for i in spread(len(clear), args.num_maps)]
        if not self.rows or not self.windows:
            raise SystemExit(
                f"The split {args.split} has no slices, or no nodules of --min_area {args.min_area} pixels in --window {args.window}."
            )

        check_run(
            self.accelerator,
            args.output_dir,
            data_identity(args.dataset_name or args.train_data_dir, splits, args.split),
        )

    def slices(self, pipe, features=()):
        """A slice (HU) of each row's map, its nodules guided by the true ratings of these features."""
        args = self.args
        kind = f"true-{'+'.join(features)}-s{args.guidance_scale:g}" if features else "none"
        folder = (
            image_folder(args.output_dir, pipe, args.num_inference_steps, args.mixed_precision)
            / f"{args.split}-slices"
            / kind
        )
        files = {folder / f"seed-{args.seed}" / f"{row['number']}.png": row for row in self.rows}

        def make(told):
            (row,) = told
            asked = (
                {
                    "nodule_features": [read_slice(row, row["number"]).true_ratings(features)],
                    "guidance_scale": args.guidance_scale,
                }
                if features
                else {}
            )
            seeds = [noise_seed(args.seed, row["number"])]
            return sample_hu(
                pipe, [np.asarray(row["semantic_map"])], seeds, num_inference_steps=args.num_inference_steps, **asked
            )

        make_missing(self.accelerator, files, make, f"slices, {kind}")
        return [read_hu(file) for file in files]

    def nodules(self, kind, features=None, scale=0.0, order="sequential"):
        """The nodule's crop (HU) of each window, guided as `features` (window to features) says; `kind` names that."""
        args = self.args
        root = (
            image_folder(args.output_dir, self.pipe, args.num_inference_steps, args.mixed_precision)
            / f"{args.split}-{args.window}"
        )
        folder = root / (f"{kind}-s{scale:g}-{order}" if features else "none")
        asked = {"guidance_scale": scale, "guidance_order": order} if features else {}
        steps = args.num_inference_steps
        images = sample_windows(
            self.accelerator,
            self.pipe,
            self.windows,
            folder,
            features,
            args.seed,
            args.sample_batch_size,
            num_inference_steps=steps,
            **asked,
        )
        return [window.crop(image) for window, image in zip(self.windows, images, strict=True)]

    def classifiers(self, figure, wanted=NODULE_FEATURES):
        """The features that the pipeline can guide, of which a figure needs at least one."""
        able = [feature for feature in wanted if getattr(self.pipe, f"{feature}_classifier", None) is not None]
        if not able:
            raise SystemExit(
                f"--which has {figure}, but the pipeline has no {' or '.join(f'{f}_classifier' for f in wanted)}."
            )
        return able


def spread(number, limit):
    return [int(i) for i in np.linspace(0, number - 1, min(number, limit))]


def panels(rows, columns, width=1.55):
    """A figure of square panels without ticks, and its axes (rows, columns)."""
    figure = Figure(figsize=(width * columns + 0.6, width * rows + 0.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def show_difference(axis, difference, limit=300):
    axis.imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit)


def add_difference_bar(figure, axes, limit=300):
    figure.set_figwidth(figure.get_figwidth() + 0.8)
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), "RdBu_r"), ax=axes, shrink=0.6, pad=0.01, aspect=30)
    bar.set_label("difference, HU", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def show_real(setting, axes):
    """In each axis the real crop of a window with the drawn nodule's outline."""
    for axis, window in zip(axes, setting.windows, strict=True):
        axis.imshow(window.crop(window.hu), **LUNG_WINDOW)
        axis.contour(window.crop(window.mask()), levels=[0.5], colors=["tab:orange"], linewidths=0.9)


def describe(window):
    return ", ".join(f"{name} {window.ratings[name]:g}" for name in NODULE_FEATURES if window.ratings[name])


def figure_5_1(setting):
    vae, device = setting.pipe.vae, setting.accelerator.device
    figure, axes = panels(len(setting.rows), 5, 2.3)
    for row, line in zip(setting.rows, axes, strict=True):
        hu = decode_image(row["image"])
        with torch.no_grad():
            pixels = torch.from_numpy(scaled_hu(hu))[None, None].to(device)
            rebuilt = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        psnr = 10 * np.log10(4 / (rebuilt - pixels).pow(2).mean().item())
        rebuilt = ((rebuilt[0, 0].cpu().numpy() + 1) * HU_PER_UNIT + HU_MIN).astype(np.float32)
        centre = find_nodules(np.asarray(row["semantic_map"]))[0].centroid_yx
        edge = min(hu.shape) // 4
        zoom = centred_window(hu.shape, centre, edge)
        for axis, image in zip(line, (hu, rebuilt, hu[zoom], rebuilt[zoom]), strict=False):
            axis.imshow(image, **LUNG_WINDOW)
        for axis in line[:2]:
            axis.add_patch(
                Rectangle((zoom[1].start, zoom[0].start), edge, edge, fill=False, edgecolor="tab:red", linewidth=1.2)
            )
        show_difference(line[4], (rebuilt - hu)[zoom], 100)
        line[0].set_ylabel(f"PSNR {psnr:.1f} dB\nmean |error| {np.abs(rebuilt - hu).mean():.1f} HU", fontsize=8)
    for axis, title in zip(
        axes[0],
        ("original", "reconstruction", "original, box", "reconstruction, box", "reconstruction - original"),
        strict=True,
    ):
        axis.set_title(title, fontsize=9)
    add_difference_bar(figure, axes[:, 4], 100)
    return figure


def compared(setting):
    """{method: slices (HU) of each row}: real, baselines, LSDM, LSDM guided by all true ratings."""
    methods = {"real": [decode_image(row["image"]) for row in setting.rows]}
    methods |= {name: setting.slices(pipe) for name, pipe in setting.baselines.items()}
    able = [f for f in NODULE_FEATURES if getattr(setting.pipe, f"{f}_classifier", None) is not None]
    methods["LSDM"] = setting.slices(setting.pipe)
    return methods | {"LSDM, guided": setting.slices(setting.pipe, able)} if able else methods


def figure_5_2(setting):
    methods = compared(setting)
    figure, axes = panels(len(setting.rows), 1 + len(methods), 2.6)
    for i, (row, line) in enumerate(zip(setting.rows, axes, strict=True)):
        labels = np.asarray(row["semantic_map"])
        line[0].imshow(PALETTE[labels])
        for axis, images in zip(line[1:], methods.values(), strict=True):
            axis.imshow(images[i], **LUNG_WINDOW)
        for axis in line:
            for nodule in find_nodules(labels):
                window = centred_window(labels.shape, nodule.centroid_yx, CROP)
                axis.add_patch(
                    Rectangle(
                        (window[1].start, window[0].start), CROP, CROP, fill=False, edgecolor="tab:red", linewidth=0.9
                    )
                )
    for axis, title in zip(axes[0], ("semantic map", *methods), strict=True):
        axis.set_title(title, fontsize=10)
    return figure


def figure_5_3(setting):
    methods = compared(setting)
    nodules = [find_nodules(np.asarray(row["semantic_map"])) for row in setting.rows]
    shown = [
        (i, nodule)
        for i, of_map in enumerate(nodules)
        for nodule in sorted(of_map, key=lambda nodule: -nodule.area)[:2]
    ]
    figure, axes = panels(1 + len(methods), len(shown), 1.7)
    for (i, nodule), column in zip(shown, axes.T, strict=True):
        labels = np.asarray(setting.rows[i]["semantic_map"])
        window = centred_window(labels.shape, nodule.centroid_yx, min(CROP, *labels.shape))
        column[0].imshow(PALETTE[labels[window]])
        for axis, images in zip(column[1:], methods.values(), strict=True):
            axis.imshow(images[i][window], **LUNG_WINDOW)
            axis.contour(nodule.mask(labels.shape)[window], levels=[0.5], colors=["tab:orange"], linewidths=0.6)
    for axis, title in zip(axes[:, 0], ("semantic map", *methods), strict=True):
        axis.set_ylabel(title, fontsize=10)
    return figure


def gradient_figure(setting, of_latents):
    """For each nodule three lines - D(z_t), gradients for benign and for malignant - and a column for each timestep."""
    setting.classifiers("5.5" if of_latents else "5.4", ("malignancy",))
    times, pipe = setting.args.timesteps, setting.pipe
    crops, nodules = zip(
        *((window.crop(window.hu), window.crop(window.mask())) for window in setting.windows), strict=True
    )
    figure, axes = panels(3 * len(crops), 1 + len(times), 1.45)
    for column, timestep in enumerate(times, 1):
        latents, images = noisy_nodules(pipe, crops, timestep, setting.args.seed)
        of_kind = {
            kind: latent_gradient(pipe, latents, timestep, kind == "malignant", nodules)
            if of_latents
            else image_gradient(pipe, images, timestep, kind == "malignant")
            for kind in KINDS
        }
        images = (images[:, 0].cpu().numpy() + 1) * HU_PER_UNIT + HU_MIN
        for number, image in enumerate(images):
            lines = axes[3 * number : 3 * number + 3, column]
            lines[0].imshow(image, **LUNG_WINDOW)
            for axis, kind in zip(lines[1:], KINDS, strict=True):
                g = of_kind[kind][number].cpu().numpy()
                limit = max(float(np.quantile(np.abs(g), 0.995)), 1e-12)
                if of_latents and len(g) == 3:
                    axis.imshow(np.clip(0.5 + g.transpose(1, 2, 0) / (2 * limit), 0, 1))
                else:
                    axis.imshow(g.mean(axis=0), cmap="RdBu_r", vmin=-limit, vmax=limit)
                axis.text(
                    0.97,
                    0.03,
                    f"max {np.abs(g).max():.2g}",
                    transform=axis.transAxes,
                    ha="right",
                    va="bottom",
                    fontsize=6,
                )
        axes[0, column].set_title(f"t = {timestep}", fontsize=9)
    show_real(setting, axes[::3, 0])
    for number, window in enumerate(setting.windows):
        axes[3 * number, 0].set_ylabel("$D(z_t)$", fontsize=9)
        axes[3 * number + 1, 0].set_ylabel("benign", fontsize=9)
        axes[3 * number + 2, 0].set_ylabel("malignant", fontsize=9)
        axes[3 * number + 1, 0].spines[:].set_visible(False)
        axes[3 * number + 2, 0].spines[:].set_visible(False)
        axes[3 * number + 1, 0].text(
            0.5, 0.5, describe(window).replace(", ", "\n"), ha="center", va="center", fontsize=8
        )
    axes[0, 0].set_title("real", fontsize=9)
    return figure


def figure_5_4(setting):
    return gradient_figure(setting, of_latents=False)


def figure_5_5(setting):
    return gradient_figure(setting, of_latents=True)


def true_ratings(features):
    return lambda window: {feature: window.ratings[feature] for feature in features if window.ratings[feature]}


def figure_5_6(setting):
    able, scale = setting.classifiers("5.6"), setting.args.guidance_scale
    unguided = setting.nodules("none")
    columns = {
        f"{feature}\nalone": setting.nodules(f"true-{feature}", true_ratings([feature]), scale) for feature in able
    }
    for order in ("sequential", "joint"):
        columns[f"all,\n{order}"] = setting.nodules("true-all", true_ratings(able), scale, order)
    figure, axes = panels(2 * len(setting.windows), 2 + len(columns), 1.5)
    show_real(setting, axes[::2, 0])
    for number, window in enumerate(setting.windows):
        upper, lower = axes[2 * number], axes[2 * number + 1]
        upper[1].imshow(unguided[number], **LUNG_WINDOW)
        for axis, below, images in zip(upper[2:], lower[2:], columns.values(), strict=True):
            axis.imshow(images[number], **LUNG_WINDOW)
            show_difference(below, images[number] - unguided[number])
        lower[0].text(0.5, 0.5, describe(window).replace(", ", "\n"), ha="center", va="center", fontsize=8)
        lower[1].text(0.5, 0.5, "guided\n- unguided", ha="center", va="center", fontsize=8)
        for axis in lower[:2]:
            axis.axis("off")
    for axis, title in zip(axes[0], ("real", "unguided", *columns), strict=True):
        axis.set_title(title, fontsize=9)
    add_difference_bar(figure, axes[:, -1])
    return figure


def figure_5_7(setting):
    able, scale = setting.classifiers("5.7"), setting.args.feature_scale
    unguided = setting.nodules("none")
    lines = {}
    for feature in able:
        values = KINDS if feature == "malignancy" else (1, 2, 3, 4, 5)
        lines[feature] = {
            v: setting.nodules(f"{feature}-{v}", lambda window, f=feature, v=v: {f: v}, scale) for v in values
        }
    figure, axes = panels(len(able) * len(setting.windows), 7, 1.5)
    for axis in axes.ravel():
        axis.spines[:].set_visible(False)
    for number, window in enumerate(setting.windows):
        for line, (feature, by_value) in zip(axes[len(able) * number :], lines.items(), strict=False):
            contents = [("real", window.crop(window.hu)), ("unguided", unguided[number])] if feature == able[0] else []
            for axis, (title, image) in zip(line, contents, strict=False):
                axis.imshow(image, **LUNG_WINDOW)
                axis.set_title(title, fontsize=9)
            line[2].set_ylabel(feature, fontsize=9)
            places = (line[2], line[6]) if feature == "malignancy" else line[2:]
            for axis, (value, images) in zip(places, by_value.items(), strict=True):
                axis.imshow(images[number], **LUNG_WINDOW)
                axis.set_title(f"{value}", fontsize=9)
    return figure


def figure_5_8(setting):
    setting.classifiers("5.8", ("malignancy",))
    unguided = setting.nodules("none")
    ladder = {
        (kind, s): setting.nodules(f"malignancy-{kind}", lambda window, k=kind: {"malignancy": k}, s)
        for kind in KINDS
        for s in setting.args.scales
    }
    figure, axes = panels(2 * len(setting.windows), 2 + len(setting.args.scales), 1.45)
    show_real(setting, axes[::2, 0])
    for number, window in enumerate(setting.windows):
        for line, kind in zip(axes[2 * number : 2 * number + 2], KINDS, strict=True):
            line[1].imshow(unguided[number], **LUNG_WINDOW)
            line[1].set_ylabel(kind, fontsize=9)
            for axis, scale in zip(line[2:], setting.args.scales, strict=True):
                axis.imshow(ladder[kind, scale][number], **LUNG_WINDOW)
        axes[2 * number + 1, 0].text(
            0.5, 0.5, describe(window).replace(", ", "\n"), ha="center", va="center", fontsize=8
        )
        axes[2 * number + 1, 0].axis("off")
    for axis, title in zip(
        axes[0], ("real", "unguided", *(f"s = {scale:g}" for scale in setting.args.scales)), strict=True
    ):
        axis.set_title(title, fontsize=9)
    return figure


def figure_5_9(setting):
    setting.classifiers("5.9", ("malignancy",))
    scale = setting.args.feature_scale
    unguided = setting.nodules("none")
    made = {
        kind: setting.nodules(f"malignancy-{kind}", lambda window, k=kind: {"malignancy": k}, scale) for kind in KINDS
    }
    figure, axes = panels(len(setting.windows), 5, 1.9)
    show_real(setting, axes[:, 0])
    for number, line in enumerate(axes):
        for axis, images in zip(line[1:], (made["benign"], unguided, made["malignant"]), strict=False):
            axis.imshow(images[number], **LUNG_WINDOW)
        show_difference(line[4], made["malignant"][number] - made["benign"][number], 600)
    titles = ("real", f"benign, s = {scale:g}", "unguided", f"malignant, s = {scale:g}", "malignant - benign")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    add_difference_bar(figure, axes[:, 4], 600)
    return figure


CAPTIONS = {
    "5.1": "Slices, their reconstruction by the autoencoder, and a part of both (box) with the difference.",
    "5.2": "The same maps by every method, from the same noise; guidance is by the true ratings of every feature with a classifier. Boxes: nodules.",
    "5.3": "The largest nodules of Fig. 5.2, 64x64 pixels, with the outline that the map draws.",
    "5.4": "Gradients of log p(benign) and log p(malignant) with respect to the decoded noisy crop: red is brighter. Each panel has its own scale.",
    "5.5": "The same with respect to the latents and inside the nodule mask, as guidance applies them: channels as colours around grey, which is 0.",
    "5.6": "Guidance by the true ratings: one feature, all of them one after the other (sequential) or at once (joint); below, what it changes.",
    "5.7": "Each feature alone at each of its ratings, from the same noise.",
    "5.8": "The ladder of guidance scales s for benign and malignant, from the same noise.",
    "5.9": "Benign and malignant from the same noise, and their difference.",
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="folder or Hub id of an LSDM pipeline; default: the shipped one",
    )
    parser.add_argument(
        "--baselines", nargs="*", default=[], metavar="NAME=PATH", help="pipelines to stand beside it in 5.2 and 5.3"
    )
    parser.add_argument(
        "--which", nargs="+", choices=CAPTIONS, default=list(CAPTIONS), help="figures to draw; default: all"
    )
    data = add_data_arguments(parser)
    data.add_argument("--split", default="validation", help="split that slices and nodules are taken from")
    data.add_argument("--num_maps", type=int, default=3, help="slices, and nodules, shown in a figure")
    data.add_argument("--min_area", type=int, default=60, help="smallest nodule shown in 5.4 to 5.9, pixels")
    data.add_argument(
        "--window", type=int, default=256, help="edge of the window around a nodule that is sampled, pixels"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps")
    sampling.add_argument(
        "--guidance_scale", type=float, default=1.0, help="s of the true ratings in 5.2, 5.3 and 5.6"
    )
    sampling.add_argument("--feature_scale", type=float, default=8.0, help="s of 5.7 and 5.9")
    sampling.add_argument("--scales", type=float, nargs="+", default=[0.5, 1, 2, 4, 8, 16, 32], help="s of 5.8")
    sampling.add_argument(
        "--timesteps", type=int, nargs="+", default=[20, 100, 200, 300, 400, 600], help="t of 5.4 and 5.5"
    )
    sampling.add_argument("--sample_batch_size", type=int, default=1, help="nodules sampled together")
    sampling.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="of sampling; bf16 needs hardware for it",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="for the figures, figures.md with their captions, and the images",
    )
    return parser.parse_args()


def main():
    args = parse_args()
    for flag in ("num_maps", "num_inference_steps", "sample_batch_size"):
        if getattr(args, flag) < 1:
            raise SystemExit(f"--{flag} is {getattr(args, flag)}, but at least 1 is needed.")
    if args.window < CROP:
        raise SystemExit(
            f"--window is {args.window}, but at least the {CROP} pixels around a nodule that the classifiers see are needed."
        )
    if args.streaming:
        raise SystemExit("--streaming: slices are drawn from all over the split; it cannot be a stream.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    setting = Setting(args)
    sampled = f"{type(setting.pipe.scheduler).__name__}, {args.num_inference_steps} steps, seed {args.seed}"
    scales = {
        "5.2": args.guidance_scale,
        "5.3": args.guidance_scale,
        "5.6": args.guidance_scale,
        "5.7": args.feature_scale,
        "5.9": args.feature_scale,
    }
    lines = []
    for name in args.which:
        figure = globals()[f"figure_{name.replace('.', '_')}"](setting)
        if not setting.accelerator.is_main_process:
            continue
        file = args.output_dir / f"figure-{name}.png"
        figure.savefig(file, dpi=150)
        guided = f" s = {scales[name]:g}." if name in scales else ""
        made = "" if name in ("5.1", "5.4", "5.5") else f" {sampled}."
        lines += [f"**{file.name}** (thesis, Fig. {name}). {CAPTIONS[name]}{guided}{made}", ""]
        print(file)
    if setting.accelerator.is_main_process:
        write_atomically(args.output_dir / "figures.md", "\n".join(lines).encode())


if __name__ == "__main__":
    main()
