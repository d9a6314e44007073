"""Quality and time against the number of denoising steps, for several schedulers: how many steps are enough, and with which.

    python training/evaluate_steps.py --dataset_name lung-ct-small-data --output_dir steps --feature_extractor efficientnet
    python training/evaluate_steps.py --dataset_name lung-ct-small-data --output_dir steps --feature_extractor efficientnet --ddpm_1000

All schedulers sample the same maps from the same noise; `own` is the checkpoint's, and its sample of `--reference_steps` steps is the one that the
others are compared with: what is left of the difference is the error of the steps, not of the model. Dice: labels recomputed from the slice
against the map. HU: Wasserstein-1 distance of the histograms under each label over the real standard deviation. FID: against the real slices.
Every image is made once and kept with its seconds, so that a run goes on where it was cut off. Writes `steps.json`, `steps.md`, `steps.png`.
"""

import argparse
import json
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure

from lsdm_diffusers import small_checkpoint
from lsdm_diffusers.data.dataset import blanked, decode_image
from lsdm_diffusers.evaluation.bootstrap import patient_bootstrap
from lsdm_diffusers.evaluation.images import (
    check_run,
    data_identity,
    make_missing,
    noise_seed,
    open_pipeline,
    read_hu,
    sample_hu,
    weights_digest,
)
from lsdm_diffusers.evaluation.metrics import EXTRACTORS, feature_extractor, image_features, frechet_distance
from lsdm_diffusers.evaluation.obedience import hu_by_label, hu_distances, label_dice, nodule_obedience
from lsdm_diffusers.hounsfield import scaled_hu
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.training.data import add_data_arguments, open_splits, rows_of_kind

SCHEDULERS = {  # Karras' noise levels are a choice of their own: `own` may have them
    "DDIM": ("DDIMScheduler", {}),
    "DPM++": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "DPM++ Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
    "UniPC Karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
}
DDPM = {"clip_sample": False, "variance_type": "fixed_small"}  # latents are not bounded; eq. 7 of Ho et al. 2020
DICE = ("dice_lung", "dice_body", "dice_bone", "nodule_dice")

COLUMNS = {
    "seconds": "seconds a slice",
    "dice_lung": "Dice lung ↑",
    "dice_body": "Dice body ↑",
    "dice_bone": "Dice bone ↑",
    "nodule_dice": "Dice nodules ↑",
    "hu_distance": "HU distance ↓",
    "fid": "FID ↓",
    "hu_from_reference": "HU from reference ↓",
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="folder or Hub id of a diffusion pipeline; default: the shipped one",
    )
    parser.add_argument(
        "--schedulers",
        nargs="*",
        choices=SCHEDULERS,
        default=["DDIM", "DPM++", "UniPC"],
        help="besides the checkpoint's own",
    )
    parser.add_argument(
        "--num_inference_steps", type=int, nargs="+", default=[10, 25, 50], help="denoising steps to compare"
    )
    parser.add_argument(
        "--reference_steps", type=int, default=250, help="steps of the own scheduler that the others are compared with"
    )
    parser.add_argument("--ddpm_1000", action="store_true", help="DDPM with 1000 steps too: 40 times the cost of 25")
    parser.add_argument("--ddpm_samples", type=int, default=2, help="of this many of the maps")
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="of sampling; bf16 needs hardware for it",
    )
    data = add_data_arguments(parser)
    data.add_argument("--split", default="validation", help="split whose maps are drawn and whose slices are compared")
    data.add_argument("--max_samples", type=int, default=8, help="maps, from all over the split")
    parser.add_argument(
        "--blank_background",
        action="store_true",
        help="FID without table and clothes, for models that were trained with this flag",
    )
    parser.add_argument(
        "--feature_extractor",
        choices=EXTRACTORS,
        default="inception",
        help="network of the FID; efficientnet works offline",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--output_dir", type=Path, required=True, help="for images and results")
    return parser.parse_args()


def schedulers_of(pipe, args):
    """{name: (scheduler, [numbers of steps], number of maps)}, the own one first."""
    own = pipe.scheduler
    steps = sorted(set(args.num_inference_steps))
    schedulers = {"own": (own, sorted({*steps, args.reference_steps}), args.max_samples)}
    for name in args.schedulers:
        kind, keywords = SCHEDULERS[name]
        schedulers[name] = (getattr(diffusers, kind).from_config(own.config, **keywords), steps, args.max_samples)
    if args.ddpm_1000:
        schedulers["DDPM"] = (
            diffusers.DDPMScheduler.from_config(own.config, **DDPM),
            [1000],
            min(args.ddpm_samples, args.max_samples),
        )
    return schedulers


def make_images(args, accelerator, pipe, rows):
    """Make the images that are missing, each with a file of its seconds; returns {(scheduler, steps): [file of each map]}."""
    root = args.output_dir / "images" / weights_digest(pipe)
    files = {}
    for name, (scheduler, numbers_of_steps, count) in schedulers_of(pipe, args).items():
        pipe.scheduler = scheduler
        for steps in numbers_of_steps:

            def make(told, steps=steps):
                file, i = told[0]
                start = time.perf_counter()
                noise = noise_seed(args.seed, rows[i]["number"])
                made = sample_hu(pipe, [np.asarray(rows[i]["semantic_map"])], [noise], num_inference_steps=steps)
                write_atomically(file.with_suffix(".seconds"), f"{time.perf_counter() - start:.3f}\n".encode())
                return made

            folder = (
                root
                / f"{name.replace(' ', '-')}-{type(scheduler).__name__}-{steps}"
                / f"seed-{args.seed}-{args.mixed_precision}"
            )
            some = [folder / f"{row['number']}.png" for row in rows[:count]]
            files[name, steps] = some
            make_missing(accelerator, {file: (file, i) for i, file in enumerate(some)}, make, f"{name}, {steps} steps")
    return files


def figures_of(rows, slices, reference=None):
    """Figures of each slice: Dice of labels and nodules, and mean |HU - reference|."""
    figures = []
    for i, (row, hu) in enumerate(zip(rows, slices, strict=True)):
        some = label_dice(row["labels"], hu, row["pixel_spacing_mm"])
        some["nodule_dice"] = float(
            np.mean([nodule["nodule_dice"] for nodule in nodule_obedience(row["labels"], hu, row["pixel_spacing_mm"])])
        )
        if reference is not None:
            some["hu_from_reference"] = float(np.abs(hu - reference[i]).mean())
        figures.append(some)
    return figures


def summary(rows, figures):
    """{figure: mean and 95% interval over patients}; a slice without bone has no Dice of bone."""
    patients = np.array([row["patient_id"] for row in rows])
    there = {
        name: [i for i, some in enumerate(figures) if name in some]
        for name in sorted({name for some in figures for name in some})
    }
    return {name: patient_bootstrap([figures[i][name] for i in some], patients[some]) for name, some in there.items()}


def set_figures(rows, maps, slices, extract):
    """Distances of a set of slices and their maps from the real slices: HU histograms by label, and FID where the sets are of one size."""
    real, drawn = [row["hu"] for row in rows], [row["labels"] for row in rows]
    distances = hu_distances(hu_by_label(drawn, real), hu_by_label(maps, slices))
    figures = {"hu_distance": {"mean": float(np.mean(list(distances.values())))}, "hu_distance_by_label": distances}
    if len(slices) == len(real) > 1:
        figures["fid"] = {"mean": frechet_distance(extract(drawn, real), extract(maps, slices))}
    return figures


def main():
    args = parse_args()
    for flag in ("num_inference_steps", "reference_steps", "max_samples", "ddpm_samples"):
        if (value := np.min(getattr(args, flag))) < 1:
            raise SystemExit(f"--{flag} is {value}, but at least 1 is needed.")
    if args.streaming:
        raise SystemExit("--streaming: slices are drawn from all over the split; it cannot be evaluated as a stream.")
    try:  # before any image is made
        extractor = feature_extractor(args.feature_extractor)
    except RuntimeError as error:
        raise SystemExit(f"--feature_extractor {args.feature_extractor}: {error}") from None
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    pipe = open_pipeline(args.pretrained_model_name_or_path or small_checkpoint()).to(accelerator.device)
    if not hasattr(pipe, "scheduler"):
        raise SystemExit(
            f"--pretrained_model_name_or_path {args.pretrained_model_name_or_path} has no scheduler: it makes its images in one step."
        )
    own = type(pipe.scheduler).__name__ + (
        " with Karras' noise levels" if pipe.scheduler.config.get("use_karras_sigmas") else ""
    )
    splits = open_splits(args)

    def drawn(split):
        listing = rows_of_kind(splits[split], lambda kind: kind != "nodule").filter(bool, input_columns="nodules")
        if not len(listing):
            raise SystemExit(f"The split {split} has no slices with nodules, which cannot be evaluated.")
        rows = [
            {**listing[int(i)], "number": int(i)}
            for i in np.linspace(0, len(listing) - 1, min(len(listing), args.max_samples)).astype(int)
        ]
        return [{**row, "labels": np.asarray(row["semantic_map"]), "hu": decode_image(row["image"])} for row in rows]

    rows, others = drawn(args.split), drawn("validation" if args.split == "train" else "train")
    check_run(
        accelerator, args.output_dir, data_identity(args.dataset_name or args.train_data_dir, splits, args.split)
    )
    files = make_images(args, accelerator, pipe, rows)
    if not accelerator.is_main_process:
        return

    extractor.to(accelerator.device)

    def extract(maps, slices):
        if args.blank_background:
            slices = [blanked(hu, labels) for labels, hu in zip(maps, slices, strict=True)]
        images = torch.from_numpy(scaled_hu(np.stack(slices).astype(np.float32)))[:, None].to(accelerator.device)
        return image_features(images, extractor, args.output_dir / "features")

    results = {"real slices": summary(rows, figures_of(rows, [row["hu"] for row in rows]))}
    results["real slices"] |= set_figures(
        rows, [row["labels"] for row in others], [row["hu"] for row in others], extract
    )
    reference = [read_hu(file) for file in files["own", args.reference_steps]]
    of_reference = figures_of(rows, reference)
    differences = {}
    for (name, steps), some in files.items():
        slices, shown = [read_hu(file) for file in some], rows[: len(some)]
        key = f"{name}, {steps}" + (f" ({len(some)} of the maps)" if len(some) < len(rows) else "")
        figures = figures_of(shown, slices, reference)
        seconds = float(np.median([float(file.with_suffix(".seconds").read_text()) for file in some]))
        results[key] = {"scheduler": name, "steps": steps, "seconds": {"mean": seconds}, **summary(shown, figures)}
        results[key] |= (
            set_figures(shown, [row["labels"] for row in shown], slices, extract) if len(some) == len(rows) else {}
        )
        paired = [
            {key: a[key] - b[key] for key in DICE if key in a and key in b}
            for a, b in zip(figures, of_reference, strict=False)
        ]
        differences[key] = summary(shown, paired)

    patients = len({row["patient_id"] for row in rows})
    setting = f"{len(rows)} maps of {patients} patients (split {args.split}), seed {args.seed}; own scheduler: {own}; features of "
    setting += f"{args.feature_extractor}; seconds on {accelerator.device.type}, {torch.get_num_threads()} thread(s), mixed precision "
    setting += args.mixed_precision + ("; FID without table and clothes" if args.blank_background else "")
    report = {
        "setting": setting,
        "feature_extractor": args.feature_extractor,
        "results": results,
        "minus_reference": differences,
    }
    report = json.loads(
        json.dumps(report), parse_constant=lambda _: None
    )  # NaN, the interval of one patient, is no JSON
    write_atomically(args.output_dir / "steps.json", (json.dumps(report, indent=1) + "\n").encode())
    table = markdown(results, differences, setting, args)
    write_atomically(args.output_dir / "steps.md", table.encode())
    draw(results, args.output_dir / "steps.png")
    print(table)


def with_interval(figure):
    interval = " ... ".join(f"{bound:+.3f}" for bound in figure["interval"])
    return f"{figure['mean']:+.3f}" + ("" if np.isnan(figure["interval"]).any() else f" ({interval})")


def markdown(results, differences, setting, args):
    """The figures of every scheduler and number of steps; then what the own scheduler loses against the reference."""
    lines = [
        f"{setting}. `real slices`: labels recomputed from the real slices; HU distance and FID to as many slices of other patients.",
        f"Reference: own scheduler, {args.reference_steps} steps, from the same noise.",
        "",
        "| scheduler, steps | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    digits = {"seconds": 2, "fid": 2, "hu_from_reference": 1}
    for name, figures in results.items():
        cells = [
            f"{figures[column]['mean']:.{digits.get(column, 3)}f}" if column in figures else "" for column in COLUMNS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if any(differences.values()):
        lines += ["", "Dice minus that of the reference, same map and noise, 95% intervals over patients:", ""]
        lines += [
            "| scheduler, steps | " + " | ".join(COLUMNS[name] for name in DICE) + " |",
            "|---" * (1 + len(DICE)) + "|",
        ]
        for name, figures in differences.items():
            cells = [with_interval(figures[d]) if d in figures else "" for d in DICE]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results, path):
    """A panel for each figure: its value against the number of steps, a line for each scheduler; real slices dotted."""
    shown = {name: title for name, title in COLUMNS.items() if any(name in figures for figures in results.values())}
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    panels = figure.subplots(2, (len(shown) + 1) // 2)
    runs = [figures for figures in results.values() if "steps" in figures]
    every = sorted({figures["steps"] for figures in runs})
    for axis, (name, title) in zip(panels.ravel(), shown.items(), strict=False):
        for scheduler in dict.fromkeys(figures["scheduler"] for figures in runs):
            points = [(f["steps"], f[name]["mean"]) for f in runs if f["scheduler"] == scheduler and name in f]
            # the reference is no distance from itself
            points = [point for point in points if point[1] or name != "hu_from_reference"]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=scheduler, markersize=4)
        if name in results["real slices"]:
            axis.axhline(results["real slices"][name]["mean"], color="grey", linestyle=":", label="real slices")
        axis.set_xscale("log")
        axis.set_xticks(every, [str(steps) for steps in every], minor=False)
        axis.set_xticks([], minor=True)
        if name == "seconds":
            axis.set_yscale("log")
        axis.set_title(
            title.rstrip(" ↑↓") + {"↑": " (higher is better)", "↓": " (lower is better)"}.get(title[-1], ""),
            fontsize=10,
        )
        axis.set_xlabel("denoising steps")
        axis.grid(alpha=0.3)
    for axis in panels.ravel()[len(shown) :]:
        axis.axis("off")
    handles = dict(zip(*reversed(panels.ravel()[1].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
