"""Evaluate pipelines on held-out maps: the thesis' Tables 5.1 and 5.2, and whether the maps are obeyed.

    python training/evaluate.py --pretrained_model_name_or_path lung-ct-small/unet/pipeline ldm/pipeline \
        --dataset_name lung-ct-small-data --arms none malignancy --seeds 0 1 --output_dir evaluated
    torchrun --nproc_per_node 2 training/evaluate.py ...   # the processes share the images

Each image is made once and kept in `<output_dir>/images`. So an interrupted run continues where it stopped, and
another model, seed or arm costs its own images only. An arm guides each nodule by the true ratings of the data; a
pipeline without classifiers has the arm `none` only.

The column `real slices` is the yardstick. Its distances (FID, KID, densities) are those to as many slices of training
patients: what another set of patients costs. A dataset without such a split has no such distances. Its obedience is
that of the real slices themselves: what the recomputing of labels and nodules costs.

Writes `results.json`, `results.md`, `samples.png`, `nodules.png`, and `model-index-<model>.yml` for each model's card.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCardData

from lsdm_diffusers.evaluation.comparison import Comparison, Figures
from lsdm_diffusers.evaluation.images import (
    check_run,
    data_identity,
    grained,
    guidable_features,
    make_missing,
    model_paths,
    noise_seed,
    open_pipeline,
    read_hu,
    reconstruct,
    sample_hu,
    sampler_name,
    scheduler_class,
    shared_ct_noise,
    weights_digest,
)
from lsdm_diffusers.evaluation.metrics import EXTRACTORS, feature_extractor
from lsdm_diffusers.evaluation.panels import panel_grid, show_hu, show_map
from lsdm_diffusers.evaluation.slices import (
    EvaluationSlice,
    evenly_spread,
    pixels_from_hu,
    slices_with_nodules,
    yardstick_slices,
)
from lsdm_diffusers.evaluation.tables import markdown_table, write_json
from lsdm_diffusers.evaluation.windows import centred_window
from lsdm_diffusers.hounsfield import hu_from_scaled
from lsdm_diffusers.hub.publishing import evaluation_results
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.models.perceptual import perceptual_distance
from lsdm_diffusers.nodule_crop import CROP
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.nodule_outline import OUTLINE_FEATURES
from lsdm_diffusers.outside_body import blanked
from lsdm_diffusers.sampling_defaults import CLASSIFIER
from lsdm_diffusers.training.data import add_data_arguments, open_splits

UNGUIDED, ALL_FEATURES = "none", "all"
METHODS_OF_OUTLINES = dict.fromkeys(OUTLINE_FEATURES, CLASSIFIER)  # the maps have the real outlines already
ARMS = (UNGUIDED, *NODULE_FEATURES, ALL_FEATURES)
REAL, RECONSTRUCTED = "real slices", "reconstructed"
FEW_IMAGES = 2048  # features of Inception; FID's covariance of fewer images has no full rank (Heusel et al., 2017)
DEPICTED_SLICES, DEPICTED_NODULES = 4, 8  # rows of samples.png and nodules.png
TABLES = {  # title: {figure: whether lower or higher is better}
    "Whole slices (Table 5.1)": {
        "fid": "↓",
        "kid": "↓",
        "ssim": "↑",
        "ms_ssim": "↑",
        "lpips": "↓",
        "psnr": "↑",
    },
    "Nodule crops of 64x64 pixels (Table 5.2)": {"nodule_fid": "↓", "nodule_kid": "↓"},
    "Densities, Wasserstein-1 over the real deviation": {"hu_distance": "↓", "hu_distance_lung": "↓"},
    "Obedience to the map": {
        "dice_lung": "↑",
        "dice_bone": "↑",
        "nodule_dice": "↑",
        "diameter_error_mm": "↓",
        "missed_nodules": "↓",
    },
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_argument_group("models")
    models.add_argument(
        "--pretrained_model_name_or_path",
        nargs="+",
        required=True,
        metavar="NAME=PATH",
        help="folders or Hub ids of the pipelines to compare; NAME= is optional",
    )
    models.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=[UNGUIDED],
        help="what guides the nodules: nothing, the true rating of one feature, or all four ratings",
    )
    models.add_argument("--guidance_scale", type=float, default=1.0, help="guidance scale s of the guided arms")
    models.add_argument(
        "--grain",
        type=float,
        default=0.0,
        help="CT noise added to the images of every model: 0 none, 1 as much as real slices have; the first pipeline "
        "with a measured noise says what it is like",
    )
    models.add_argument(
        "--reconstructions",
        action="store_true",
        help="measure also the real slices as the autoencoder of each latent model reconstructs them: what its U-Net "
        "could reach at best",
    )
    models.add_argument(
        "--scheduler", help="name of a diffusers scheduler class for all pipelines; default: each pipeline's own"
    )
    models.add_argument("--num_inference_steps", type=int, default=25, help="number of denoising steps")
    models.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds of the noise; each makes one image of every map"
    )
    models.add_argument(
        "--sample_batch_size", type=int, default=1, help="number of slices sampled together; all must have one size"
    )
    models.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="precision of sampling; bf16 needs hardware that supports it",
    )
    data = add_data_arguments(parser)
    data.add_argument(
        "--split", default="validation", help="split whose maps are sampled and whose slices are compared with"
    )
    data.add_argument(
        "--max_samples", type=int, help="evaluate at most this many slices, evenly spread; default: all of the split"
    )
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--blank_background",
        action="store_true",
        help="remove table and clothes before comparing; for models that were trained with this flag",
    )
    metrics.add_argument(
        "--feature_extractor",
        choices=EXTRACTORS,
        default="inception",
        help="network whose features FID and KID compare; efficientnet works without the internet",
    )
    metrics.add_argument("--lpips", action="store_true", help="compute LPIPS, too; downloads the weights of VGG16")
    parser.add_argument(
        "--seed", type=int, default=0, help="which training slices --max_train_samples draws, for the yardstick"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of images, features and results")
    return parser.parse_args()


@dataclass(frozen=True)
class Method:
    """A model and what guides its nodules: a column of the tables."""

    model: str
    arm: str

    @property
    def name(self) -> str:
        return self.model if self.arm == UNGUIDED else f"{self.model} + {self.arm}"


class Job(NamedTuple):
    """One image to make."""

    slice: EvaluationSlice
    seed: int


Summary = dict[str, dict[str, float]]  # {figure: {"mean", and "deviation" over seeds where there are several}}
Files = dict[Method, dict[int, list[Path]]]  # {method: {seed: the image of each slice}}


def summarise(by_seed: Sequence[Figures]) -> Summary:
    """Mean over seeds and, where there are several, standard deviation of each figure."""
    summary = {}
    for name in by_seed[0]:
        values = [figures[name] for figures in by_seed]
        summary[name] = {"mean": float(np.mean(values))}
        if len(values) > 1:
            summary[name]["deviation"] = float(np.std(values, ddof=1))
    return summary


def open_data(args: argparse.Namespace) -> tuple[list[EvaluationSlice], list[EvaluationSlice], dict[str, str]]:
    """The slices to evaluate, as many of other patients for the yardstick, and what identifies the data.

    There are no slices of other patients where the dataset has none, or too few for FID.
    """
    dataset = args.dataset_name or args.train_data_dir
    splits = open_splits(dataset, args.streaming, args.max_train_samples, args.seed, args.split, needed=[])
    slices = slices_with_nodules(splits[args.split], args.max_samples)
    if len(slices) < 2:
        raise ValueError(
            f"--split {args.split} of the dataset {dataset} has {len(slices)} slice(s) with nodules to evaluate, but "
            "FID needs at least 2."
        )
    if count_nodules(slices) < 2:
        raise ValueError(
            f"the maps of --split {args.split} of the dataset {dataset} show {count_nodules(slices)} nodule(s), but "
            "FID needs at least 2."
        )
    others = yardstick_slices(splits, args.split, len(slices))
    if len(others) < 2 or count_nodules(others) < 2:
        others = []
    return slices, others, data_identity(dataset, splits, args.split)


def count_nodules(slices: Sequence[EvaluationSlice]) -> int:
    return sum(len(ct_slice.nodules) for ct_slice in slices)


def guiding_features(pipe: DiffusionPipeline, arm: str) -> list[str]:
    """The features whose true ratings guide an arm, of those that the pipeline has a classifier for."""
    return [feature for feature in guidable_features(pipe) if arm in (feature, ALL_FEATURES)]


def make_images(args: argparse.Namespace, accelerator: Accelerator, slices: Sequence[EvaluationSlice]) -> Files:
    """Make the images of every model and arm that do not exist yet; returns the files of all."""
    files: Files = {}
    for model, path in model_paths(args.pretrained_model_name_or_path).items():
        try:
            pipe = open_pipeline(path, args.scheduler).to(accelerator.device)
        except ValueError as error:
            raise SystemExit(f"--pretrained_model_name_or_path: {error}") from None
        for arm in args.arms:
            if arm == UNGUIDED or guiding_features(pipe, arm):
                files[Method(model, arm)] = make_arm(args, accelerator, pipe, Method(model, arm), slices)
    return files


def make_arm(
    args: argparse.Namespace,
    accelerator: Accelerator,
    pipe: DiffusionPipeline,
    method: Method,
    slices: Sequence[EvaluationSlice],
) -> dict[int, list[Path]]:
    """Make the images of one arm that do not exist yet; returns {seed: the file of each slice}."""
    features = guiding_features(pipe, method.arm)
    arm = method.arm
    if features:  # another method gives other images
        methods = pipe.recommended_methods(METHODS_OF_OUTLINES)
        arm = "-".join([arm, f"s{args.guidance_scale:g}", *sorted({methods[feature] for feature in features})])
    model_folder = args.output_dir / "images" / f"{method.model}-{weights_digest(pipe)}"
    folder = model_folder / sampler_name(pipe, args.num_inference_steps) / f"{arm}-{args.mixed_precision}"

    def make_batch(batch: list[Job]) -> np.ndarray:
        return sample_hu(
            pipe,
            [job.slice.semantic_map for job in batch],
            [noise_seed(job.seed, job.slice.number) for job in batch],
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            nodule_features=[job.slice.true_ratings(features) for job in batch] if features else None,
            guidance_method=METHODS_OF_OUTLINES,
        )

    files = {seed: [folder / f"seed-{seed}" / f"{ct_slice.number}.png" for ct_slice in slices] for seed in args.seeds}
    jobs: dict[Path, Job] = {}
    for seed, seed_files in files.items():
        jobs |= {file: Job(ct_slice, seed) for file, ct_slice in zip(seed_files, slices, strict=True)}
    make_missing(accelerator, jobs, make_batch, method.name, args.sample_batch_size)
    return files


def reconstructions(args: argparse.Namespace, slices: Sequence[EvaluationSlice]) -> dict[str, list[np.ndarray]]:
    """The real slices, encoded and decoded by the autoencoder of each model that has one: {name: slices in HU}."""
    found = {}
    for model, path in model_paths(args.pretrained_model_name_or_path).items():
        pipe = open_pipeline(path)
        if hasattr(pipe, "vae"):
            pixels = pixels_from_hu([blanked(each.hu, each.semantic_map) for each in slices])
            decoded = reconstruct(pipe.vae, pixels, batch_size=1).clamp(-1, 1)
            found[f"{RECONSTRUCTED} by {model}"] = list(hu_from_scaled(decoded[:, 0]).numpy())
    return found


def describe_setting(args: argparse.Namespace, slices: Sequence[EvaluationSlice]) -> str:
    patients = len({ct_slice.patient_id for ct_slice in slices})
    parts = [
        f"{len(slices)} slices of {patients} patients (split {args.split}), {count_nodules(slices)} nodules, "
        f"{len(args.seeds)} seed(s)",
        f"{args.num_inference_steps} steps, {args.scheduler or 'own scheduler'}, s = {args.guidance_scale:g}",
        f"features of {args.feature_extractor}",
    ]
    if args.grain:
        parts.append(f"grain {args.grain:g}")
    if args.blank_background:
        parts.append("without table and clothes")
    return "; ".join(parts)


def metric_table(title: str, directions: Mapping[str, str], results: Mapping[str, Summary]) -> str:
    """A table with a row for each figure that any method has, and a column for each method."""

    def cell(figure: dict[str, float] | None) -> str:
        if figure is None:
            return ""
        deviation = f" ± {figure['deviation']:.3f}" if "deviation" in figure else ""
        return f"{figure['mean']:.3f}{deviation}"

    rows = [
        [f"{name} {direction}", *(cell(summary.get(name)) for summary in results.values())]
        for name, direction in directions.items()
        if any(name in summary for summary in results.values())
    ]
    return f"## {title}\n\n{markdown_table(['', *results], rows)}\n"


def report_notes(results: Mapping[str, Summary], num_slices: int, num_nodules: int) -> list[str]:
    """What a reader of the tables must know: what the yardstick is, why it may lose, and how far FID can be trusted.

    Args:
        results: of each method and of the real slices.
        num_slices: how many slices FID and KID of whole slices compare.
        num_nodules: how many crops FID and KID of nodules compare.
    """
    if "fid" in results[REAL]:
        notes = [
            f"`{REAL}`: distances to as many slices of other patients; obedience of the real slices themselves.",
            "A model can have a lower `nodule_fid` than the real slices: its crops have the maps, and so the nodules, "
            "of the slices that they are compared with, but the real crops are of other patients and other nodules.",
        ]
    else:
        notes = [
            f"`{REAL}`: obedience of the real slices themselves. Their distances to other patients are left out, "
            "because the dataset has no other split with at least 2 slices and 2 nodules."
        ]
    notes.append(
        "A model can have a higher `nodule_dice` than the real slices: it draws a nodule with the sharp outline of "
        "the map, but readers draw the outline of a real one by eye, and a threshold of density finds another."
    )
    if min(num_slices, num_nodules) < FEW_IMAGES:
        notes.append(
            f"**Few images:** FID and KID compare {num_slices} slices and {num_nodules} nodule crops. With fewer than "
            f"{FEW_IMAGES} images, as many as Inception has features, FID comes out too high, and the more so the "
            "fewer they are; KID is right on average, but scatters. Compare only methods within these tables, which "
            "have the same number of images, and do not compare with figures of other reports."
        )
    return notes


def report_text(results: Mapping[str, Summary], setting: str, notes: Sequence[str]) -> str:
    """Table 5.1 (whole slices), Table 5.2 (nodule crops), densities and obedience, after the notes on them."""
    tables = [metric_table(title, directions, results) for title, directions in TABLES.items()]
    return "\n".join([f"{setting}.", "", *(f"{note}\n" for note in notes), *tables])


def draw_pictures(folder: Path, slices: Sequence[EvaluationSlice], images: Mapping[str, Sequence[np.ndarray]]) -> None:
    """samples.png: map, real slice and every method; nodules.png: the same around the first nodule of each map.

    Args:
        folder: of the two pictures.
        slices: the real slices and their maps.
        images: {method: a slice in HU of each map}.
    """
    columns = {"real": [ct_slice.hu for ct_slice in slices], **images}
    whole = (slice(None), slice(None))
    depicted = {index: whole for index in evenly_spread(len(slices), DEPICTED_SLICES)}
    draw_picture(folder / "samples.png", slices, columns, depicted)
    with_nodules = [index for index, ct_slice in enumerate(slices) if ct_slice.nodules]
    depicted = {}
    for position in evenly_spread(len(with_nodules), DEPICTED_NODULES):
        index = with_nodules[position]
        ct_slice = slices[index]
        depicted[index] = centred_window(ct_slice.semantic_map.shape, ct_slice.nodules[0].centroid_yx, CROP)
    draw_picture(folder / "nodules.png", slices, columns, depicted)


def draw_picture(
    file: Path,
    slices: Sequence[EvaluationSlice],
    columns: Mapping[str, Sequence[np.ndarray]],
    depicted: Mapping[int, tuple[slice, slice]],
) -> None:
    """A line for each depicted slice {index: window}: its map, then every column."""
    figure, axes = panel_grid(len(depicted), 1 + len(columns), width=2.4)
    for line, (index, window) in zip(axes, depicted.items(), strict=True):
        show_map(line[0], slices[index].semantic_map[window])
        for axis, images in zip(line[1:], columns.values(), strict=True):
            show_hu(axis, images[index][window])
    for axis, title in zip(axes[0], ("map", *columns), strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(file, dpi=90)


def write_report(
    args: argparse.Namespace,
    results: dict[str, Summary],
    slices: Sequence[EvaluationSlice],
    images_a_second: dict[str, float],
) -> None:
    """Write results.json, results.md and the entries of the models' cards; print the tables."""
    dataset = args.dataset_name or args.train_data_dir
    dataset_name = Path(dataset).name if Path(dataset).exists() else dataset
    setting = describe_setting(args, slices)
    notes = report_notes(results, len(slices), count_nodules(slices))
    content = {
        "setting": setting,
        "notes": notes,
        "dataset": dataset_name,
        "split": args.split,
        "feature_extractor": args.feature_extractor,
        "results": results,
        "images_a_second": images_a_second,
    }
    write_json(args.output_dir / "results.json", content)
    for method, summary in results.items():
        if method != REAL and not method.startswith(RECONSTRUCTED):
            entries = evaluation_results(summary, dataset_name, args.split, setting)
            model_index = ModelCardData(model_name=method, eval_results=entries).to_yaml() + "\n"
            write_atomically(args.output_dir / f"model-index-{method.replace(' + ', '+')}.yml", model_index.encode())
    text = report_text(results, setting, notes)
    write_atomically(args.output_dir / "results.md", text.encode())
    print(text)


def main() -> None:
    args = parse_args()
    if args.streaming:
        raise SystemExit("--streaming: slices from all over the split are needed, but a stream gives the first ones.")
    for flag in ("num_inference_steps", "sample_batch_size"):
        if getattr(args, flag) < 1:
            raise SystemExit(f"--{flag} is {getattr(args, flag)}, but at least 1 is needed.")
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    try:  # everything that can be wrong, before any image is made
        model_paths(args.pretrained_model_name_or_path)
        if args.scheduler:
            scheduler_class(args.scheduler)
        slices, others, identity = open_data(args)
        extractor = feature_extractor(args.feature_extractor)
        lpips = perceptual_distance("lpips" if args.lpips else "none")
        noise = shared_ct_noise(model_paths(args.pretrained_model_name_or_path).values(), args.grain)
        check_run(accelerator, args.output_dir, identity)
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"evaluate.py: {error}") from None

    files = make_images(args, accelerator, slices)
    if not accelerator.is_main_process:
        return

    comparison = Comparison(
        slices, extractor, args.output_dir / "features", lpips, args.blank_background, accelerator.device
    )
    results = {REAL: summarise([comparison.yardstick(others)])}
    depicted: dict[str, list[np.ndarray]] = {}

    def measure(images: Sequence[np.ndarray], seed: int, name: str) -> Figures:
        with_noise = [
            grained(hu, each.semantic_map, noise, args.grain, noise_seed(seed, each.number))
            for hu, each in zip(images, slices, strict=True)
        ]
        depicted.setdefault(name, with_noise)  # those of the first seed
        return comparison.measure(with_noise)

    if args.reconstructions:
        for name, images in reconstructions(args, slices).items():
            results[name] = summarise([measure(images, args.seeds[0], name)])
    for method, files_by_seed in files.items():
        by_seed = [
            measure([read_hu(file) for file in seed_files], seed, method.name)
            for seed, seed_files in files_by_seed.items()
        ]
        results[method.name] = summarise(by_seed)

    draw_pictures(args.output_dir, slices, depicted)
    write_report(args, results, slices, comparison.speed.images_a_second())


if __name__ == "__main__":
    main()
