"""Do samples of one map differ, and does any of them repeat a training nodule?

    python training/evaluate_diversity.py --dataset_name lung-ct-small-data --output_dir diversity --feature_extractor efficientnet \
        --perceptual efficientnet

Nodules, 64x64 pixels, are sampled from maps of `--split` with several seeds, unguided and guided by their true ratings, and from training maps,
where a copy would be likeliest. **Diversity**: perceptual distance between samples of one map, beside that between a sample and the real nodule of
its map, and between real nodules of two patients. **Memorisation**: distance to the nearest training nodule - of pixels, of pixels over that of
the second nearest, and of features - against that of real nodules which no training saw; the share below their 1st percentile is 1% where
nothing is copied. A map alone brings a sample near its own real nodule: how near, samples of unseen maps among the unseen nodules show. Training
nodules that went through the autoencoder alone are what a copy would look like: a distance that does not tell them has no say. Unseen nodules
that did so show what the autoencoder's smoothing does. Writes `diversity.json`, `diversity.md`, `diversity.png` and `closest.png`. Intervals:
95%, over patients.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist

from lsdm_diffusers import small_checkpoint
from lsdm_diffusers.evaluation.bootstrap import patient_bootstrap
from lsdm_diffusers.evaluation.images import check_run, data_identity, image_folder, open_pipeline
from lsdm_diffusers.evaluation.metrics import EXTRACTORS, feature_extractor, image_features
from lsdm_diffusers.evaluation.windows import nodule_windows, sample_windows
from lsdm_diffusers.hounsfield import HU_MAX, HU_MIN, scaled_hu
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.labels import PALETTE
from lsdm_diffusers.models.perceptual import PERCEPTUAL, perceptual_distance
from lsdm_diffusers.nodule_crop import CROP
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.training.data import add_data_arguments, open_splits

AMONG_UNSEEN = "unguided, maps of unseen patients, among the unseen nodules"
SPACES = {"pixels": "pixels, HU", "ratio": "pixels, nearest / second nearest", "features": "features"}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="folder or Hub id of a pipeline; default: the shipped one",
    )
    parser.add_argument(
        "--features",
        nargs="*",
        choices=NODULE_FEATURES,
        default=["malignancy"],
        help="ratings that guide; none for no guided arm",
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="s")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps")
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="of sampling; bf16 needs hardware for it",
    )
    parser.add_argument("--sample_batch_size", type=int, default=16, help="nodules sampled together")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3],
        help="of the noise; at least two, one sample of each map and seed",
    )
    data = add_data_arguments(parser)
    data.add_argument("--split", default="validation", help="split that no training saw")
    data.add_argument("--max_samples", type=int, default=96, help="maps of each split, from all over it")
    parser.add_argument(
        "--perceptual",
        choices=[p for p in PERCEPTUAL if p != "none"],
        default="lpips",
        help="distance; efficientnet works offline",
    )
    parser.add_argument(
        "--feature_extractor",
        choices=EXTRACTORS,
        default="inception",
        help="space of the neighbours; efficientnet works offline",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="which real nodules are paired, and of --max_train_samples"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for images, features and results")
    return parser.parse_args()


def pixels_of(images):
    return torch.from_numpy(scaled_hu(np.stack(images).astype(np.float32)))[:, None]


@torch.no_grad()
def through_autoencoder(pipe, images):
    """The images (HU) encoded and decoded."""
    batches = [
        pipe.vae.decode(pipe.vae.encode(some.to(pipe.device)).latent_dist.mode()).sample.cpu()
        for some in pixels_of(images).split(16)
    ]
    return list(((torch.cat(batches).clamp(-1, 1)[:, 0] + 1) / 2 * (HU_MAX - HU_MIN) + HU_MIN).numpy())


def diversity(samples, windows, distance, device, seed):
    """{what: mean perceptual distance and its interval}: between samples of one map, to the real nodule, and between real nodules of two patients."""
    between = lambda a, b: float(distance(pixels_of([a]).to(device), pixels_of([b]).to(device)))  # noqa: E731
    patients = np.array([window.patient_id for window in windows])
    figures = {}
    with torch.no_grad():
        for arm, by_seed in samples.items():
            of_map = [
                np.mean([between(by_seed[a][i], by_seed[b][i]) for a, b in combinations(by_seed, 2)])
                for i in range(len(windows))
            ]
            figures[f"{arm}: two samples of one map"] = patient_bootstrap(of_map, patients)
            from_real = [
                np.mean([between(some[i], windows[i].hu) for some in by_seed.values()]) for i in range(len(windows))
            ]
            figures[f"{arm}: a sample and the real nodule of its map"] = patient_bootstrap(from_real, patients)
        generator = np.random.default_rng(seed)
        others = (
            [generator.choice(np.flatnonzero(patients != patient)) for patient in patients]
            if len(set(patients)) > 1
            else []
        )
        if others:
            pairs = [between(window.hu, windows[other].hu) for window, other in zip(windows, others, strict=True)]
            figures["real nodules of two patients"] = patient_bootstrap(pairs, patients)
    return figures


def neighbours(images, training, extract):
    """{space: (N,) distance to the nearest training nodule}, and the index of the nearest one in pixels."""
    flat = [np.stack(some).astype(np.float32).reshape(len(some), -1) for some in (images, training)]
    by_pixels = cdist(*flat) / CROP  # root mean square
    nearest, second = np.sort(by_pixels, axis=1)[:, :2].T
    ratio = np.divide(nearest, second, out=np.ones_like(nearest), where=second > 0)
    by_features = cdist(extract(images), extract(training))
    return {"pixels": nearest, "ratio": ratio, "features": by_features.min(axis=1)}, by_pixels.argmin(axis=1)


def main():
    args = parse_args()
    if len(set(args.seeds)) < 2:
        raise SystemExit(f"--seeds is {args.seeds}, but at least two different ones are needed.")
    for flag in ("max_samples", "num_inference_steps", "sample_batch_size"):
        if getattr(args, flag) < 1:
            raise SystemExit(f"--{flag} is {getattr(args, flag)}, but at least 1 is needed.")
    if args.streaming or args.split == "train":
        raise SystemExit(
            f"--{'streaming' if args.streaming else 'split train'}: training nodules are held in memory, and others stand against them."
        )
    try:  # before any image is made
        extractor, distance = feature_extractor(args.feature_extractor), perceptual_distance(args.perceptual)
    except RuntimeError as error:
        raise SystemExit(
            f"--feature_extractor {args.feature_extractor}, --perceptual {args.perceptual}: {error}"
        ) from None
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    pipe = open_pipeline(args.pretrained_model_name_or_path or small_checkpoint()).to(accelerator.device)
    splits = open_splits(args)
    training, unseen = (list(nodule_windows(splits[name], CROP)) for name in ("train", args.split))
    if len(training) < 2 or not unseen:
        raise SystemExit(
            f"The dataset {args.dataset_name or args.train_data_dir} has a split without nodules, which cannot be evaluated."
        )
    windows, train_windows = (
        [some[int(i)] for i in np.linspace(0, len(some) - 1, min(len(some), args.max_samples)).astype(int)]
        for some in (unseen, training)
    )

    check_run(
        accelerator, args.output_dir, data_identity(args.dataset_name or args.train_data_dir, splits, args.split)
    )
    root = image_folder(args.output_dir, pipe, args.num_inference_steps, args.mixed_precision)
    sampling = {"batch_size": args.sample_batch_size, "num_inference_steps": args.num_inference_steps}
    guided_by = [feature for feature in args.features if getattr(pipe, f"{feature}_classifier", None) is not None]
    arms = {"unguided": ("none", None, {})}
    if guided_by:
        features = lambda window: {f: window.ratings[f] for f in guided_by if window.ratings[f]}  # noqa: E731
        kind = "+".join(guided_by) + f"-s{args.guidance_scale:g}"
        arms["guided"] = (kind, features, {"guidance_scale": args.guidance_scale})
    samples = {
        arm: {
            s: sample_windows(accelerator, pipe, windows, root / f"{args.split}-64" / kind, f, s, **sampling, **more)
            for s in args.seeds
        }
        for arm, (kind, f, more) in arms.items()
    }
    on_training_maps = sample_windows(
        accelerator, pipe, train_windows, root / "train-64" / "none", seed=args.seeds[0], **sampling
    )
    if not accelerator.is_main_process:
        return

    extractor.to(accelerator.device)
    distance.to(accelerator.device)
    differ = diversity(samples, windows, distance, accelerator.device, args.seed)

    # {name: (images, windows whose maps they are of, real nodules among which the nearest is looked for)}
    sets = {"real nodules of unseen patients": ([window.hu for window in unseen], unseen, training)}
    if hasattr(pipe, "vae"):
        sets["the same through the autoencoder"] = (
            through_autoencoder(pipe, sets["real nodules of unseen patients"][0]),
            unseen,
            training,
        )
    for arm, by_seed in samples.items():
        sets[f"{arm}, maps of unseen patients"] = (
            [hu for some in by_seed.values() for hu in some],
            windows * len(by_seed),
            training,
        )
    sets["unguided, maps of training patients"] = (on_training_maps, train_windows, training)
    sets[AMONG_UNSEEN] = (list(samples["unguided"][args.seeds[0]]), windows, unseen)
    if hasattr(pipe, "vae"):
        sets["copies: training nodules through the autoencoder"] = (
            through_autoencoder(pipe, [w.hu for w in train_windows]),
            train_windows,
            training,
        )
    extract = lambda images: image_features(
        pixels_of(images).to(accelerator.device), extractor, args.output_dir / "features"
    ).numpy()  # noqa: E731
    distances, nearest = {}, {}
    for name, (images, _, pool) in sets.items():
        distances[name], nearest[name] = neighbours(images, [window.hu for window in pool], extract)
    limits = {space: float(np.quantile(distances["real nodules of unseen patients"][space], 0.01)) for space in SPACES}
    memorised = {}
    for name, (_, drawn, pool) in sets.items():
        patients = [window.patient_id for window in drawn]
        memorised[name] = {
            space: {
                "median": float(np.median(distances[name][space])),
                "share_closer": patient_bootstrap(distances[name][space] < limits[space], patients),
            }
            for space in SPACES
        }
        own = [pool[at].name == window.name for at, window in zip(nearest[name], drawn, strict=True)]
        memorised[name]["nearest_is_own"] = float(np.mean(own)) if drawn is train_windows or pool is unseen else None

    setting = f"{len(windows)} maps of {len({w.patient_id for w in windows})} patients (split {args.split}), seeds {args.seeds}; "
    setting += f"{args.num_inference_steps} steps; guided by {', '.join(guided_by) or 'nothing'}, s = {args.guidance_scale:g}; {len(training)} training and "
    setting += f"{len(unseen)} unseen real nodules; perceptual distance {args.perceptual}, features of {args.feature_extractor}"
    report = {
        "setting": setting,
        "perceptual": args.perceptual,
        "feature_extractor": args.feature_extractor,
        "diversity": differ,
    }
    report |= {"limits_1st_percentile": limits, "memorisation": memorised}
    write_atomically(args.output_dir / "diversity.json", (json.dumps(report, indent=1) + "\n").encode())
    table = markdown(differ, memorised, limits, setting)
    write_atomically(args.output_dir / "diversity.md", table.encode())
    draw_distances(distances, limits, args.output_dir / "diversity.png")
    draw_closest(sets, distances, nearest, args.output_dir / "closest.png")
    print(table)


def markdown(differ, memorised, limits, setting):
    lines = [
        setting + ". In brackets 95% intervals over patients.",
        "",
        "## Diversity",
        "",
        "| | perceptual distance |",
        "|---|---|",
    ]
    lines += [
        f"| {name} | {f['mean']:.3f} ({f['interval'][0]:.3f} ... {f['interval'][1]:.3f}) |"
        for name, f in differ.items()
    ]
    lines += [
        "",
        "## Memorisation",
        "",
        "Share closer to a training nodule than 1% of the unseen real nodules are; in italics the median distance.",
    ]
    lines += ["A distance that does not tell the copies has no say.", ""]
    lines += [
        "| | "
        + " | ".join(f"{title} (1% below {limits[space]:.3g})" for space, title in SPACES.items())
        + " | nearest is its own |"
    ]
    lines += ["|---" * (2 + len(SPACES)) + "|"]
    for name, figures in memorised.items():
        cells = []
        for space in SPACES:
            share, (low, high) = figures[space]["share_closer"]["mean"], figures[space]["share_closer"]["interval"]
            cells.append(f"{share:.1%} ({low:.1%} ... {high:.1%}), *{figures[space]['median']:.3g}*")
        own = "" if figures["nearest_is_own"] is None else f"{figures['nearest_is_own']:.1%}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {own} |")
    return "\n".join(lines) + "\n"


def draw_distances(distances, limits, path):
    """Cumulative distribution of the distance to the nearest training nodule, a panel for each space, a line for each set."""
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    panels = figure.subplots(1, len(SPACES))
    for axis, (space, title) in zip(panels, SPACES.items(), strict=True):
        for name, of_space in distances.items():
            style = ":" if name.startswith("copies") else "--" if name.startswith(("real", "the same")) else "-"
            axis.ecdf(of_space[space], label=name, linestyle=style)
        axis.axvline(limits[space], color="grey", linewidth=0.8)
        axis.set_title(f"nearest training nodule: {title}", fontsize=10)
        axis.set_xlabel("ratio of distances" if space == "ratio" else "distance")
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("share of nodules below")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=110)


def draw_closest(sets, distances, nearest, path):
    """The samples nearest to a real nodule, for each set of samples: map, sample, that real nodule and their difference."""
    shown = [name for name in sets if name.split(",")[0] in ("unguided", "guided")]
    count = 8
    figure = Figure(figsize=(1.35 * count + 1.2, 6.2 * len(shown)), layout="constrained")
    for part, name in zip(np.atleast_1d(figure.subfigures(len(shown), 1)), shown, strict=True):
        images, drawn, pool = sets[name]
        closest = np.argsort(distances[name]["pixels"])[:count]
        panels = part.subplots(4, count, squeeze=False)
        for column, i in zip(panels.T, closest, strict=False):
            match = pool[nearest[name][i]]
            contents = {"map": PALETTE[drawn[i].semantic_map], "sample": images[i], "nearest\nreal nodule": match.hu}
            for axis, (title, image) in zip(column, contents.items(), strict=False):
                axis.imshow(image, cmap="gray", vmin=-1350, vmax=150)
                if axis in panels[:, 0]:
                    axis.set_ylabel(title, fontsize=9)
            column[3].imshow(images[i] - match.hu, cmap="RdBu_r", vmin=-600, vmax=600)
            column[0].set_title(f"{distances[name]['pixels'][i]:.0f} HU", fontsize=8)
        panels[3, 0].set_ylabel("difference\n(±600 HU)", fontsize=9)
        for axis in panels.ravel():
            axis.set_xticks([])
            axis.set_yticks([])
        part.suptitle(
            f"{name}: the {min(count, len(closest))} nearest to a real nodule (root mean square of the difference)",
            fontsize=10,
        )
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
