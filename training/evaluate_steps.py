"""Quality and time against the number of denoising steps: how many steps are enough, and with which scheduler?

    python training/evaluate_steps.py --dataset_name lung-ct-small-data --output_dir steps \
        --feature_extractor efficientnet
    python training/evaluate_steps.py --dataset_name lung-ct-small-data --output_dir steps \
        --feature_extractor efficientnet --ddpm_1000

All schedulers sample the same maps from the same noise. `own` is the scheduler of the checkpoint. Its sample of
`--reference_steps` steps is the reference for the others: what differs from it is the error of the steps, not of the
model. Dice compares the labels recomputed from the slice with the map. HU distance is the Wasserstein-1 distance of
the histograms under each label, over the real standard deviation. FID compares with the real slices.

Each image is made once and kept with its seconds, so an interrupted run continues where it stopped. Writes
`steps.json`, `steps.md`, `steps.png`.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, SchedulerMixin
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsdm_diffusers import small_checkpoint
from lsdm_diffusers.evaluation.bootstrap import Estimate, patient_bootstrap
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
from lsdm_diffusers.evaluation.metrics import EXTRACTORS, feature_extractor, frechet_distance, image_features
from lsdm_diffusers.evaluation.obedience import hu_by_label, hu_distances, label_dice, nodule_obedience
from lsdm_diffusers.evaluation.slices import (
    EvaluationSlice,
    pixels_from_hu,
    slices_with_nodules,
    yardstick_slices,
)
from lsdm_diffusers.evaluation.tables import format_estimate, markdown_table, write_json
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.outside_body import blanked
from lsdm_diffusers.training.data import add_data_arguments, open_splits

OWN, REAL = "own", "real slices"
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # Karras' noise levels are a choice of their own
    "DDIM": ("DDIMScheduler", {}),
    "DPM++": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "DPM++ Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
    "UniPC Karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
}
DDPM_STEPS = 1000
DDPM_CONFIG = {"clip_sample": False, "variance_type": "fixed_small"}  # latents are not bounded; Ho et al. 2020, eq. 7
DICE = ("dice_lung", "dice_body", "dice_bone", "nodule_dice")


class Column(NamedTuple):
    """A column of the table, and a panel of the picture."""

    title: str
    better: str  # "higher" or "lower"; "" for the seconds
    digits: int

    @property
    def heading(self) -> str:
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[self.better]
        return f"{self.title}{arrow}"


COLUMNS = {
    "seconds": Column("seconds a slice", "", 2),
    "dice_lung": Column("Dice lung", "higher", 3),
    "dice_body": Column("Dice body", "higher", 3),
    "dice_bone": Column("Dice bone", "higher", 3),
    "nodule_dice": Column("Dice nodules", "higher", 3),
    "hu_distance": Column("HU distance", "lower", 3),
    "fid": Column("FID", "lower", 2),
    "hu_from_reference": Column("HU from reference", "lower", 1),
}


@dataclass(frozen=True)
class Run:
    """A scheduler with a number of steps: a row of the table."""

    scheduler: str
    steps: int
    num_maps: int


@dataclass
class Result:
    """The figures of a run: {name: {"mean", and "interval" over patients where there is one}}."""

    run: Run
    figures: dict[str, dict[str, Any]]
    minus_reference: dict[str, Estimate]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a diffusion pipeline; default: the shipped one"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--schedulers",
        nargs="*",
        choices=SCHEDULERS,
        default=["DDIM", "DPM++", "UniPC"],
        help="schedulers to compare with the checkpoint's own",
    )
    sampling.add_argument(
        "--num_inference_steps",
        type=int,
        nargs="+",
        default=[10, 25, 50],
        help="numbers of denoising steps to compare",
    )
    sampling.add_argument(
        "--reference_steps", type=int, default=250, help="steps of the own scheduler for the reference"
    )
    sampling.add_argument(
        "--ddpm_1000", action="store_true", help="sample by DDPM with 1000 steps, too: 40 times the cost of 25 steps"
    )
    sampling.add_argument("--ddpm_samples", type=int, default=2, help="number of maps that DDPM samples")
    sampling.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="precision of sampling; bf16 needs hardware that supports it",
    )
    sampling.add_argument("--seed", type=int, default=0, help="seed of the noise")
    data = add_data_arguments(parser)
    data.add_argument(
        "--split", default="validation", help="split whose maps are sampled and whose slices are compared with"
    )
    data.add_argument("--max_samples", type=int, default=8, help="number of maps, evenly spread over the split")
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--blank_background",
        action="store_true",
        help="remove table and clothes before the FID; for models that were trained with this flag",
    )
    metrics.add_argument(
        "--feature_extractor",
        choices=EXTRACTORS,
        default="inception",
        help="network whose features FID compares; efficientnet works without the internet",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of images and results")
    return parser.parse_args()


def open_data(args: argparse.Namespace) -> tuple[list[EvaluationSlice], list[EvaluationSlice], dict[str, str]]:
    """The slices to sample, as many of other patients for the yardstick (or none), and what identifies the data."""
    dataset = args.dataset_name or args.train_data_dir
    splits = open_splits(dataset, args.streaming, args.max_train_samples, args.seed, args.split, needed=[])
    slices = slices_with_nodules(splits[args.split], args.max_samples)
    if not slices:
        raise ValueError(f"the split {args.split} has no slices with nodules, which cannot be evaluated.")
    others = yardstick_slices(splits, args.split, args.max_samples)
    return slices, others, data_identity(dataset, splits, args.split)


def list_runs(args: argparse.Namespace, pipe: DiffusionPipeline) -> dict[Run, SchedulerMixin]:
    """Each run with its scheduler, the own one first."""
    own_config = pipe.scheduler.config
    numbers_of_steps = sorted(set(args.num_inference_steps))
    runs = {}
    for steps in sorted({*numbers_of_steps, args.reference_steps}):
        runs[Run(OWN, steps, args.max_samples)] = pipe.scheduler
    for name in args.schedulers:
        class_name, keywords = SCHEDULERS[name]
        scheduler = getattr(diffusers, class_name).from_config(own_config, **keywords)
        for steps in numbers_of_steps:
            runs[Run(name, steps, args.max_samples)] = scheduler
    if args.ddpm_1000:
        ddpm = diffusers.DDPMScheduler.from_config(own_config, **DDPM_CONFIG)
        runs[Run("DDPM", DDPM_STEPS, min(args.ddpm_samples, args.max_samples))] = ddpm
    return runs


def make_images(
    args: argparse.Namespace, accelerator: Accelerator, pipe: DiffusionPipeline, slices: Sequence[EvaluationSlice]
) -> dict[Run, list[Path]]:
    """Make the images that do not exist yet, each with a file of its seconds; returns the files of every run."""
    root = args.output_dir / "images" / weights_digest(pipe)
    files_by_run = {}
    for run, scheduler in list_runs(args, pipe).items():
        pipe.scheduler = scheduler
        sampler = f"{run.scheduler.replace(' ', '-')}-{type(scheduler).__name__}-{run.steps}"
        folder = root / sampler / f"seed-{args.seed}-{args.mixed_precision}"

        def make_one(batch: list[tuple[Path, EvaluationSlice]], steps: int = run.steps) -> np.ndarray:
            file, ct_slice = batch[0]
            start = time.perf_counter()
            seeds = [noise_seed(args.seed, ct_slice.number)]
            images = sample_hu(pipe, [ct_slice.semantic_map], seeds, num_inference_steps=steps)
            write_atomically(seconds_file(file), f"{time.perf_counter() - start:.3f}\n".encode())
            return images

        sampled = slices[: run.num_maps]
        files = [folder / f"{ct_slice.number}.png" for ct_slice in sampled]
        jobs = {file: (file, ct_slice) for file, ct_slice in zip(files, sampled, strict=True)}
        make_missing(accelerator, jobs, make_one, f"{run.scheduler}, {run.steps} steps")
        files_by_run[run] = files
    return files_by_run


def seconds_file(image_file: Path) -> Path:
    return image_file.with_suffix(".seconds")


class Measurement:
    """Measures the images of runs against the real slices and the reference.

    Args:
        slices: the real slices and their maps.
        extractor: network of the FID.
        features_dir: folder that keeps its features.
        blank_background: whether table and clothes are removed before the FID.
        device: of the extractor.
    """

    def __init__(
        self,
        slices: Sequence[EvaluationSlice],
        extractor: torch.nn.Module,
        features_dir: Path,
        blank_background: bool,
        device: torch.device,
    ) -> None:
        self.slices, self.features_dir, self.blank_background = slices, features_dir, blank_background
        self.extractor, self.device = extractor.to(device), device

    def yardstick(self, others: Sequence[EvaluationSlice]) -> dict[str, dict[str, Any]]:
        """Obedience of the real slices themselves, and their distances to slices of other patients, if any."""
        figures = self.slice_figures([real.hu for real in self.slices])
        distances = self.set_figures(others, [other.hu for other in others]) if others else {}
        return {**self.summarise(figures), **distances}

    def slice_figures(
        self, images: Sequence[np.ndarray], reference: Sequence[np.ndarray] | None = None
    ) -> list[dict[str, float]]:
        """Dice of labels and nodules of each image, and its mean |HU - reference|."""
        figures = []
        for index, hu in enumerate(images):
            ct_slice = self.slices[index]
            values = label_dice(ct_slice.semantic_map, hu, ct_slice.pixel_spacing)
            nodules = nodule_obedience(ct_slice.semantic_map, hu, ct_slice.pixel_spacing)
            values["nodule_dice"] = float(np.mean([nodule["nodule_dice"] for nodule in nodules]))
            if reference is not None:
                values["hu_from_reference"] = float(np.abs(hu - reference[index]).mean())
            figures.append(values)
        return figures

    def summarise(self, figures: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Mean and 95% interval over patients of each figure, over the slices that have it: not all show bone."""
        patients = np.array([self.slices[index].patient_id for index in range(len(figures))])
        summary = {}
        for name in sorted({name for values in figures for name in values}):
            indices = [index for index, values in enumerate(figures) if name in values]
            summary[name] = patient_bootstrap([figures[index][name] for index in indices], patients[indices])
        return summary

    def set_figures(
        self, other_slices: Sequence[EvaluationSlice], images: Sequence[np.ndarray]
    ) -> dict[str, dict[str, Any]]:
        """Distances of a set of images and their maps from the real slices; FID where both sets have one size."""
        real = [ct_slice.hu for ct_slice in self.slices]
        real_hu = hu_by_label([ct_slice.semantic_map for ct_slice in self.slices], real)
        distances = hu_distances(real_hu, hu_by_label([other.semantic_map for other in other_slices], images))
        figures: dict[str, dict[str, Any]] = {
            "hu_distance": {"mean": float(np.mean(list(distances.values())))},
            "hu_distance_by_label": distances,
        }
        if len(images) == len(real) > 1:
            features = self.features(self.slices, real), self.features(other_slices, images)
            figures["fid"] = {"mean": frechet_distance(*features)}
        return figures

    def features(self, slices: Sequence[EvaluationSlice], images: Sequence[np.ndarray]) -> torch.Tensor:
        if self.blank_background:
            images = [blanked(hu, ct_slice.semantic_map) for ct_slice, hu in zip(slices, images, strict=True)]
        return image_features(pixels_from_hu(images).to(self.device), self.extractor, self.features_dir)


def measure_run(measurement: Measurement, run: Run, files: Sequence[Path], reference: Sequence[np.ndarray]) -> Result:
    """The figures of a run, and its Dice minus that of the reference, slice by slice."""
    images = [read_hu(file) for file in files]
    figures = measurement.slice_figures(images, reference)
    seconds = float(np.median([float(seconds_file(file).read_text()) for file in files]))
    summary: dict[str, dict[str, Any]] = {"seconds": {"mean": seconds}, **measurement.summarise(figures)}
    if len(images) == len(measurement.slices):
        summary |= measurement.set_figures(measurement.slices, images)
    differences = []
    for values, reference_values in zip(figures, measurement.slice_figures(reference[: len(images)]), strict=True):
        names = [name for name in DICE if name in values and name in reference_values]
        differences.append({name: values[name] - reference_values[name] for name in names})
    return Result(run, summary, measurement.summarise(differences))


def result_name(run: Run, num_maps: int) -> str:
    name = f"{run.scheduler}, {run.steps}"
    return name if run.num_maps >= num_maps else f"{name} ({run.num_maps} of the maps)"


def describe_setting(
    args: argparse.Namespace, slices: Sequence[EvaluationSlice], own_scheduler: str, device: torch.device
) -> str:
    patients = len({ct_slice.patient_id for ct_slice in slices})
    parts = [
        f"{len(slices)} maps of {patients} patients (split {args.split}), seed {args.seed}",
        f"own scheduler: {own_scheduler}",
        f"features of {args.feature_extractor}",
        f"seconds on {device.type}, {torch.get_num_threads()} thread(s), mixed precision {args.mixed_precision}",
    ]
    if args.blank_background:
        parts.append("FID without table and clothes")
    return "; ".join(parts)


def figures_table(yardstick: Mapping[str, Any], results: Mapping[str, Result]) -> str:
    """The figures of the real slices and of every run."""
    figures_by_row = {REAL: yardstick, **{name: result.figures for name, result in results.items()}}
    rows = []
    for name, figures in figures_by_row.items():
        cells = [
            f"{figures[key]['mean']:.{column.digits}f}" if key in figures else "" for key, column in COLUMNS.items()
        ]
        rows.append([name, *cells])
    return markdown_table(["scheduler, steps", *(column.heading for column in COLUMNS.values())], rows)


def differences_table(results: Mapping[str, Result]) -> str:
    """Dice of every run minus that of the reference, with intervals over patients."""
    rows = []
    for name, result in results.items():
        differences = result.minus_reference
        cells = [format_estimate(differences[key], "+.3f") if key in differences else "" for key in DICE]
        rows.append([name, *cells])
    return markdown_table(["scheduler, steps", *(COLUMNS[key].heading for key in DICE)], rows)


def report_text(yardstick: Mapping[str, Any], results: Mapping[str, Result], setting: str, reference: int) -> str:
    if "hu_distance" in yardstick:
        distances = "HU distance and FID to as many slices of other patients"
    else:
        distances = "no HU distance and FID, because the dataset has no slices with nodules of other patients"
    lines = [
        f"{setting}. `{REAL}`: labels recomputed from the real slices; {distances}.",
        f"Reference: own scheduler, {reference} steps, from the same noise.",
        "",
        figures_table(yardstick, results),
    ]
    if any(result.minus_reference for result in results.values()):
        lines += ["", "Dice minus that of the reference, same map and noise, 95% intervals over patients:", ""]
        lines.append(differences_table(results))
    return "\n".join(lines) + "\n"


def draw_picture(file: Path, yardstick: Mapping[str, Any], results: Mapping[str, Result]) -> None:
    """A panel for each figure: its value against the number of steps, a line for each scheduler."""
    columns = {
        key: column for key, column in COLUMNS.items() if any(key in result.figures for result in results.values())
    }
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    panels = figure.subplots(2, (len(columns) + 1) // 2).ravel()
    for axis, (key, column) in zip(panels, columns.items(), strict=False):
        draw_panel(axis, key, column, yardstick, list(results.values()))
    for axis in panels[len(columns) :]:
        axis.axis("off")
    lines, labels = panels[1].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(file, dpi=110)


def draw_panel(axis: Axes, key: str, column: Column, yardstick: Mapping[str, Any], results: Sequence[Result]) -> None:
    for scheduler in dict.fromkeys(result.run.scheduler for result in results):
        runs = [result for result in results if result.run.scheduler == scheduler and key in result.figures]
        if key == "hu_from_reference":  # the reference is no distance from itself
            runs = [result for result in runs if result.figures[key]["mean"]]
        if runs:
            means = [result.figures[key]["mean"] for result in runs]
            axis.plot([result.run.steps for result in runs], means, "o-", label=scheduler, markersize=4)
    if key in yardstick:
        axis.axhline(yardstick[key]["mean"], color="grey", linestyle=":", label=REAL)
    numbers_of_steps = sorted({result.run.steps for result in results})
    axis.set_xscale("log")
    axis.set_xticks(numbers_of_steps, [str(steps) for steps in numbers_of_steps], minor=False)
    axis.set_xticks([], minor=True)
    if key == "seconds":
        axis.set_yscale("log")
    note = f" ({column.better} is better)" if column.better else ""
    axis.set_title(f"{column.title}{note}", fontsize=10)
    axis.set_xlabel("denoising steps")
    axis.grid(alpha=0.3)


def write_report(
    args: argparse.Namespace, setting: str, yardstick: Mapping[str, Any], results: Mapping[str, Result]
) -> None:
    """Write steps.json, steps.md and steps.png; print the tables."""
    figures = {
        name: {"scheduler": result.run.scheduler, "steps": result.run.steps, **result.figures}
        for name, result in results.items()
    }
    content = {
        "setting": setting,
        "feature_extractor": args.feature_extractor,
        "results": {REAL: yardstick, **figures},
        "minus_reference": {name: result.minus_reference for name, result in results.items()},
    }
    write_json(args.output_dir / "steps.json", content)
    text = report_text(yardstick, results, setting, args.reference_steps)
    write_atomically(args.output_dir / "steps.md", text.encode())
    draw_picture(args.output_dir / "steps.png", yardstick, results)
    print(text)


def main() -> None:
    args = parse_args()
    for flag in ("num_inference_steps", "reference_steps", "max_samples", "ddpm_samples"):
        if (value := np.min(getattr(args, flag))) < 1:
            raise SystemExit(f"--{flag} is {value}, but at least 1 is needed.")
    if args.streaming:
        raise SystemExit("--streaming: slices from all over the split are needed, but a stream gives the first ones.")
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    try:  # everything that can be wrong, before any image is made
        extractor = feature_extractor(args.feature_extractor)
        pipe = open_pipeline(args.pretrained_model_name_or_path or small_checkpoint()).to(accelerator.device)
        if not hasattr(pipe, "scheduler"):
            raise ValueError(
                f"--pretrained_model_name_or_path {args.pretrained_model_name_or_path} has no scheduler: it makes its "
                "images in one step."
            )
        slices, others, identity = open_data(args)
        check_run(accelerator, args.output_dir, identity)
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"evaluate_steps.py: {error}") from None

    own_scheduler = type(pipe.scheduler).__name__
    if pipe.scheduler.config.get("use_karras_sigmas"):
        own_scheduler += " with Karras' noise levels"
    files_by_run = make_images(args, accelerator, pipe, slices)
    if not accelerator.is_main_process:
        return

    measurement = Measurement(
        slices, extractor, args.output_dir / "features", args.blank_background, accelerator.device
    )
    yardstick = measurement.yardstick(others)
    reference = [read_hu(file) for file in files_by_run[Run(OWN, args.reference_steps, args.max_samples)]]
    results = {
        result_name(run, len(slices)): measure_run(measurement, run, files, reference)
        for run, files in files_by_run.items()
    }
    write_report(args, describe_setting(args, slices, own_scheduler, accelerator.device), yardstick, results)


if __name__ == "__main__":
    main()
