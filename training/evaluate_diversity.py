"""Do samples of one map differ, and does any of them repeat a training nodule?

    python training/evaluate_diversity.py --dataset_name lung-ct-small-data --output_dir diversity \
        --feature_extractor efficientnet --perceptual efficientnet

The script samples nodules of 64x64 pixels with several seeds: unguided and guided by their true ratings from maps of
`--split`, and unguided from maps of training patients, where a copy would be likeliest.

Diversity is the perceptual distance between samples of one map. Beside it stand the distance between a sample and the
real nodule of its map, and the distance between real nodules of two patients.

Memorisation is the distance to the nearest training nodule, compared with that of real nodules which no training saw.
It is measured in three ways: by pixels, by pixels over the distance to the second nearest, and by features. The share
below the 1st percentile of the unseen real nodules is 1% where nothing is copied. Three comparisons help to read it:

* A map alone brings a sample near its own real nodule. Samples of unseen maps among the unseen nodules show how near.
* Training nodules that went through the autoencoder alone are what a copy would look like. A distance that does not
  find these copies says nothing.
* Unseen nodules that went through the autoencoder show what its smoothing does.

Writes `diversity.json`, `diversity.md`, `diversity.png` and `closest.png`. Intervals are 95%, over patients.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure, SubFigure
from scipy.spatial.distance import cdist

from lsdm_diffusers import small_checkpoint
from lsdm_diffusers.evaluation.bootstrap import Estimate, patient_bootstrap
from lsdm_diffusers.evaluation.images import (
    check_run,
    data_identity,
    guidable_features,
    image_folder,
    open_pipeline,
    reconstruct,
)
from lsdm_diffusers.evaluation.metrics import EXTRACTORS, feature_extractor, image_features
from lsdm_diffusers.evaluation.panels import show_hu, show_map
from lsdm_diffusers.evaluation.slices import evenly_spread, pixels_from_hu
from lsdm_diffusers.evaluation.tables import format_estimate, markdown_table, write_json
from lsdm_diffusers.evaluation.windows import NoduleWindow, nodule_windows, sample_windows
from lsdm_diffusers.hounsfield import hu_from_scaled
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.models.perceptual import PERCEPTUAL, perceptual_distance
from lsdm_diffusers.nodule_crop import CROP
from lsdm_diffusers.nodule_features import NODULE_FEATURES
from lsdm_diffusers.training.data import add_data_arguments, open_splits

UNGUIDED, GUIDED = "unguided", "guided"
UNSEEN = "real nodules of unseen patients"
SPACES = {"pixels": "pixels, HU", "ratio": "pixels, nearest / second nearest", "features": "features"}
LIMIT_QUANTILE = 0.01  # of the distances of unseen real nodules: nearer samples are suspected copies
DEPICTED_NEIGHBOURS = 8  # columns of closest.png
DIFFERENCE_LIMIT_HU = 600  # of its colours

Samples = dict[str, dict[int, list[np.ndarray]]]  # {arm: {seed: an image (64, 64) in HU of each window}}


@dataclass
class NoduleSet:
    """Images of nodules whose nearest real nodules are looked for.

    Args:
        name: row of the table.
        images: (64, 64) in HU.
        windows: the window whose map each image is of.
        pool: the real nodules among which the nearest one is looked for.
        knows_its_own: whether the pool holds the real nodule of each window.
        is_sampled: whether a diffusion model made the images.
    """

    name: str
    images: list[np.ndarray]
    windows: list[NoduleWindow]
    pool: list[NoduleWindow]
    knows_its_own: bool = False
    is_sampled: bool = False


@dataclass
class Neighbours:
    """Distances of the images of a set to their nearest real nodules: {space: (N,)}, and which these are: (N,)."""

    distances: dict[str, np.ndarray]
    nearest: np.ndarray


@dataclass
class Memorisation:
    """How near the images of a set come to real nodules.

    Args:
        median: {space: median distance to the nearest real nodule}.
        share_closer: {space: share of the images closer than the limit}.
        nearest_is_own: share whose nearest real nodule is that of their map; None where the pool does not hold it.
    """

    median: dict[str, float]
    share_closer: dict[str, Estimate]
    nearest_is_own: float | None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped one"
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--features",
        nargs="*",
        choices=NODULE_FEATURES,
        default=["malignancy"],
        help="features whose true ratings guide the guided samples; give none to leave these out",
    )
    sampling.add_argument("--guidance_scale", type=float, default=1.0, help="guidance scale s of the guided samples")
    sampling.add_argument("--num_inference_steps", type=int, default=25, help="number of denoising steps")
    sampling.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="precision of sampling; bf16 needs hardware that supports it",
    )
    sampling.add_argument("--sample_batch_size", type=int, default=16, help="number of nodules sampled together")
    sampling.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3],
        help="seeds of the noise, two or more; each makes one sample of every map",
    )
    data = add_data_arguments(parser)
    data.add_argument("--split", default="validation", help="split that no training saw")
    data.add_argument("--max_samples", type=int, default=96, help="number of maps of each split, evenly spread")
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--perceptual",
        choices=[name for name in PERCEPTUAL if name != "none"],
        default="lpips",
        help="perceptual distance of the diversity; efficientnet works without the internet",
    )
    metrics.add_argument(
        "--feature_extractor",
        choices=EXTRACTORS,
        default="inception",
        help="network whose features find the nearest nodules; efficientnet works without the internet",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="which real nodules are paired, and which rows --max_train_samples draws"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of images, features and results")
    args = parser.parse_args()
    if len(set(args.seeds)) < 2:
        raise SystemExit(f"--seeds is {args.seeds}, but at least two different ones are needed.")
    for flag in ("max_samples", "num_inference_steps", "sample_batch_size"):
        if getattr(args, flag) < 1:
            raise SystemExit(f"--{flag} is {getattr(args, flag)}, but at least 1 is needed.")
    if args.streaming:
        raise SystemExit("--streaming: all training nodules are held in memory, which a stream does not allow.")
    if args.split == "train":
        raise SystemExit("--split train: other nodules than those of the training are compared with them.")
    return args


def open_windows(args: argparse.Namespace, splits: Mapping[str, Dataset]) -> tuple[list[NoduleWindow], ...]:
    """All nodules of the training split, and all of the unseen split."""
    training, unseen = (list(nodule_windows(splits[name], CROP)) for name in ("train", args.split))
    if len(training) < 2 or not unseen:
        dataset = args.dataset_name or args.train_data_dir
        raise ValueError(f"the dataset {dataset} has a split without nodules, which cannot be evaluated.")
    return training, unseen


def thin_out(windows: Sequence[NoduleWindow], limit: int) -> list[NoduleWindow]:
    return [windows[index] for index in evenly_spread(len(windows), limit)]


def sample_all(
    args: argparse.Namespace,
    accelerator: Accelerator,
    pipe: DiffusionPipeline,
    windows: Sequence[NoduleWindow],
    training_windows: Sequence[NoduleWindow],
    guiding: Sequence[str],
) -> tuple[Samples, list[np.ndarray]]:
    """The samples of every arm and seed from maps of the unseen split, and unguided ones from training maps."""
    root = image_folder(args.output_dir, pipe, args.num_inference_steps, args.mixed_precision)
    common = {"batch_size": args.sample_batch_size, "num_inference_steps": args.num_inference_steps}
    unseen_root = root / f"{args.split}-{CROP}"

    def true_ratings(window: NoduleWindow) -> dict[str, float]:
        return {feature: window.ratings[feature] for feature in guiding if window.ratings[feature]}

    samples: Samples = {UNGUIDED: {}}
    for seed in args.seeds:
        samples[UNGUIDED][seed] = sample_windows(accelerator, pipe, windows, unseen_root / "none", seed=seed, **common)
    if guiding:
        folder = unseen_root / f"{'+'.join(guiding)}-s{args.guidance_scale:g}"
        samples[GUIDED] = {
            seed: sample_windows(
                accelerator, pipe, windows, folder, true_ratings, seed, guidance_scale=args.guidance_scale, **common
            )
            for seed in args.seeds
        }
    of_training_maps = sample_windows(
        accelerator, pipe, training_windows, root / f"train-{CROP}" / "none", seed=args.seeds[0], **common
    )
    return samples, of_training_maps


class Diversity:
    """Perceptual distances between images in HU.

    Args:
        distance: from `perceptual_distance`.
        device: where it is computed.
    """

    def __init__(self, distance: torch.nn.Module, device: torch.device) -> None:
        self.distance, self.device = distance.to(device), device

    @torch.no_grad()
    def between(self, image: np.ndarray, other: np.ndarray) -> float:
        pixels = (pixels_from_hu([hu]).to(self.device) for hu in (image, other))
        return float(self.distance(*pixels))

    def mean_between(self, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        return float(np.mean([self.between(image, other) for image, other in pairs]))

    def measure(self, samples: Samples, windows: Sequence[NoduleWindow], seed: int) -> dict[str, Estimate]:
        """Mean distances: between samples of one map, to its real nodule, between real nodules of two patients."""
        patients = np.array([window.patient_id for window in windows])
        figures = {}
        for arm, by_seed in samples.items():
            by_map = list(zip(*by_seed.values(), strict=True))
            among = [self.mean_between(combinations(images, 2)) for images in by_map]
            figures[f"{arm}: two samples of one map"] = patient_bootstrap(among, patients)
            to_real = [
                self.mean_between((image, window.hu) for image in images)
                for images, window in zip(by_map, windows, strict=True)
            ]
            figures[f"{arm}: a sample and the real nodule of its map"] = patient_bootstrap(to_real, patients)
        if len(set(patients)) > 1:
            generator = np.random.default_rng(seed)
            others = [windows[generator.choice(np.flatnonzero(patients != patient))] for patient in patients]
            pairs = [self.between(window.hu, other.hu) for window, other in zip(windows, others, strict=True)]
            figures["real nodules of two patients"] = patient_bootstrap(pairs, patients)
        return figures


def through_autoencoder(pipe: DiffusionPipeline, windows: Sequence[NoduleWindow]) -> list[np.ndarray]:
    """The real nodules encoded and decoded, in HU."""
    pixels = reconstruct(pipe.vae, pixels_from_hu([window.hu for window in windows])).float().cpu().clamp(-1, 1)
    return list(hu_from_scaled(pixels[:, 0].numpy()))


def list_sets(
    pipe: DiffusionPipeline,
    samples: Samples,
    of_training_maps: list[np.ndarray],
    windows: list[NoduleWindow],
    training_windows: list[NoduleWindow],
    unseen: list[NoduleWindow],
    training: list[NoduleWindow],
) -> list[NoduleSet]:
    """The sets of images whose nearest real nodules are looked for: the rows of the table."""
    sets = [NoduleSet(UNSEEN, [window.hu for window in unseen], unseen, training)]
    has_autoencoder = hasattr(pipe, "vae")
    if has_autoencoder:
        sets.append(NoduleSet("the same through the autoencoder", through_autoencoder(pipe, unseen), unseen, training))
    for arm, by_seed in samples.items():
        images = [image for seed_images in by_seed.values() for image in seed_images]
        name = f"{arm}, maps of unseen patients"
        sets.append(NoduleSet(name, images, windows * len(by_seed), training, is_sampled=True))
    sets.append(
        NoduleSet(
            f"{UNGUIDED}, maps of training patients",
            of_training_maps,
            training_windows,
            training,
            True,
            is_sampled=True,
        )
    )
    first_seed = next(iter(samples[UNGUIDED].values()))
    among_unseen = f"{UNGUIDED}, maps of unseen patients, among the unseen nodules"
    sets.append(NoduleSet(among_unseen, list(first_seed), windows, unseen, True, is_sampled=True))
    if has_autoencoder:
        copies = through_autoencoder(pipe, training_windows)
        name = "copies: training nodules through the autoencoder"
        sets.append(NoduleSet(name, copies, training_windows, training, True))
    return sets


def find_neighbours(
    images: Sequence[np.ndarray],
    pool: Sequence[np.ndarray],
    features: np.ndarray,
    pool_features: np.ndarray,
) -> Neighbours:
    """The nearest of the pool for each image: by the root mean square of the HU difference, and by features.

    Args:
        images: (N,) images (64, 64) in HU.
        pool: (M,) images, M >= 2.
        features: (N, d).
        pool_features: (M, d).
    """
    flat, flat_pool = (np.stack(batch).astype(np.float32).reshape(len(batch), -1) for batch in (images, pool))
    by_pixels = cdist(flat, flat_pool) / CROP
    nearest, second = np.sort(by_pixels, axis=1)[:, :2].T
    ratio = np.divide(nearest, second, out=np.ones_like(nearest), where=second > 0)
    by_features = cdist(features, pool_features).min(axis=1)
    return Neighbours({"pixels": nearest, "ratio": ratio, "features": by_features}, by_pixels.argmin(axis=1))


def measure_memorisation(nodules: NoduleSet, neighbours: Neighbours, limits: Mapping[str, float]) -> Memorisation:
    patients = np.array([window.patient_id for window in nodules.windows])
    nearest_is_own = None
    if nodules.knows_its_own:
        is_own = [
            nodules.pool[index].name == window.name
            for index, window in zip(neighbours.nearest, nodules.windows, strict=True)
        ]
        nearest_is_own = float(np.mean(is_own))
    return Memorisation(
        median={space: float(np.median(neighbours.distances[space])) for space in SPACES},
        share_closer={
            space: patient_bootstrap(neighbours.distances[space] < limits[space], patients) for space in SPACES
        },
        nearest_is_own=nearest_is_own,
    )


def diversity_table(diversity: Mapping[str, Estimate]) -> str:
    return markdown_table(["", "perceptual distance"], [[name, format_estimate(d)] for name, d in diversity.items()])


def memorisation_table(memorisation: Mapping[str, Memorisation], limits: Mapping[str, float]) -> str:
    """A row for each set; a cell has the share of images closer than the limit and, in italics, the median."""
    rows = []
    for name, figures in memorisation.items():
        cells = [f"{format_estimate(figures.share_closer[s], '.1%')}, *{figures.median[s]:.3g}*" for s in SPACES]
        nearest_is_own = "" if figures.nearest_is_own is None else f"{figures.nearest_is_own:.1%}"
        rows.append([name, *cells, nearest_is_own])
    headers = [f"{title} (1% below {limits[space]:.3g})" for space, title in SPACES.items()]
    return markdown_table(["", *headers, "nearest is its own"], rows)


def report_text(
    setting: str,
    diversity: Mapping[str, Estimate],
    memorisation: Mapping[str, Memorisation],
    limits: Mapping[str, float],
) -> str:
    lines = [
        f"{setting}. In brackets 95% intervals over patients.",
        "",
        "## Diversity",
        "",
        diversity_table(diversity),
        "",
        "## Memorisation",
        "",
        "Share closer to a training nodule than 1% of the unseen real nodules are; in italics the median distance.",
        "A distance that does not find the copies says nothing.",
        "",
        memorisation_table(memorisation, limits),
    ]
    return "\n".join(lines) + "\n"


def describe_setting(
    args: argparse.Namespace,
    windows: Sequence[NoduleWindow],
    unseen: Sequence[NoduleWindow],
    training: Sequence[NoduleWindow],
    guiding: Sequence[str],
) -> str:
    patients = len({window.patient_id for window in windows})
    return "; ".join(
        [
            f"{len(windows)} maps of {patients} patients (split {args.split}), seeds {args.seeds}",
            f"{args.num_inference_steps} steps",
            f"guided by {', '.join(guiding) or 'nothing'}, s = {args.guidance_scale:g}",
            f"{len(training)} training and {len(unseen)} unseen real nodules",
            f"perceptual distance {args.perceptual}, features of {args.feature_extractor}",
        ]
    )


def draw_distances(file: Path, neighbours: Mapping[str, Neighbours], limits: Mapping[str, float]) -> None:
    """Cumulative distribution of the distance to the nearest nodule: a panel for each space, a line for each set."""
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    panels = figure.subplots(1, len(SPACES))
    for axis, (space, title) in zip(panels, SPACES.items(), strict=True):
        for name, found in neighbours.items():
            style = "-"
            if name.startswith("copies"):
                style = ":"
            elif name.startswith((UNSEEN, "the same")):
                style = "--"
            axis.ecdf(found.distances[space], label=name, linestyle=style)
        axis.axvline(limits[space], color="grey", linewidth=0.8)
        axis.set_title(f"nearest training nodule: {title}", fontsize=10)
        axis.set_xlabel("ratio of distances" if space == "ratio" else "distance")
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("share of nodules below")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)


def draw_closest(file: Path, sets: Sequence[NoduleSet], neighbours: Mapping[str, Neighbours]) -> None:
    """For each set of samples those nearest to a real nodule: map, sample, that real nodule and their difference."""
    sampled = [nodules for nodules in sets if nodules.is_sampled]
    figure = Figure(figsize=(1.35 * DEPICTED_NEIGHBOURS + 1.2, 6.2 * len(sampled)), layout="constrained")
    parts = figure.subfigures(len(sampled), 1, squeeze=False).ravel()
    for part, nodules in zip(parts, sampled, strict=True):
        draw_closest_of(part, nodules, neighbours[nodules.name])
    figure.savefig(file, dpi=100)


def draw_closest_of(part: SubFigure, nodules: NoduleSet, neighbours: Neighbours) -> None:
    distances = neighbours.distances["pixels"]
    closest = np.argsort(distances)[:DEPICTED_NEIGHBOURS]
    panels = part.subplots(4, DEPICTED_NEIGHBOURS, squeeze=False)
    for column, index in zip(panels.T, closest, strict=False):
        image, real = nodules.images[index], nodules.pool[neighbours.nearest[index]].hu
        show_map(column[0], nodules.windows[index].semantic_map)
        show_hu(column[1], image)
        show_hu(column[2], real)
        column[3].imshow(image - real, cmap="RdBu_r", vmin=-DIFFERENCE_LIMIT_HU, vmax=DIFFERENCE_LIMIT_HU)
        column[0].set_title(f"{distances[index]:.0f} HU", fontsize=8)
    for axis in panels.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    titles = ("map", "sample", "nearest\nreal nodule", f"difference\n(±{DIFFERENCE_LIMIT_HU} HU)")
    for axis, title in zip(panels[:, 0], titles, strict=True):
        axis.set_ylabel(title, fontsize=9)
    part.suptitle(
        f"{nodules.name}: the {len(closest)} nearest to a real nodule (root mean square of the difference)",
        fontsize=10,
    )


def write_report(
    args: argparse.Namespace,
    setting: str,
    diversity: Mapping[str, Estimate],
    memorisation: Mapping[str, Memorisation],
    limits: Mapping[str, float],
) -> None:
    """Write diversity.json and diversity.md; print the tables."""
    by_set: dict[str, dict[str, Any]] = {}
    for name, figures in memorisation.items():
        by_set[name] = {
            space: {"median": figures.median[space], "share_closer": figures.share_closer[space]} for space in SPACES
        }
        by_set[name]["nearest_is_own"] = figures.nearest_is_own
    content = {
        "setting": setting,
        "perceptual": args.perceptual,
        "feature_extractor": args.feature_extractor,
        "diversity": diversity,
        "limits_1st_percentile": limits,
        "memorisation": by_set,
    }
    write_json(args.output_dir / "diversity.json", content)
    text = report_text(setting, diversity, memorisation, limits)
    write_atomically(args.output_dir / "diversity.md", text.encode())
    print(text)


def main() -> None:
    args = parse_args()
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    dataset = args.dataset_name or args.train_data_dir
    try:  # everything that can be wrong, before any image is made
        extractor, distance = feature_extractor(args.feature_extractor), perceptual_distance(args.perceptual)
        assert distance is not None  # `none` is no choice of this script
        pipe = open_pipeline(args.pretrained_model_name_or_path or small_checkpoint()).to(accelerator.device)
        splits = open_splits(dataset, False, args.max_train_samples, args.seed, args.split, needed=["train"])
        training, unseen = open_windows(args, splits)
        check_run(accelerator, args.output_dir, data_identity(dataset, splits, args.split))
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"evaluate_diversity.py: {error}") from None
    windows, training_windows = thin_out(unseen, args.max_samples), thin_out(training, args.max_samples)
    guiding = [feature for feature in args.features if feature in guidable_features(pipe)]
    samples, of_training_maps = sample_all(args, accelerator, pipe, windows, training_windows, guiding)
    if not accelerator.is_main_process:
        return

    diversity = Diversity(distance, accelerator.device).measure(samples, windows, args.seed)

    extractor.to(accelerator.device)

    def extract(images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = pixels_from_hu(images).to(accelerator.device)
        features: np.ndarray = image_features(pixels, extractor, args.output_dir / "features").numpy()
        return features

    sets = list_sets(pipe, samples, of_training_maps, windows, training_windows, unseen, training)
    neighbours = {}
    for nodules in sets:
        pool = [window.hu for window in nodules.pool]
        neighbours[nodules.name] = find_neighbours(nodules.images, pool, extract(nodules.images), extract(pool))
    limits = {
        space: float(np.quantile(values, LIMIT_QUANTILE)) for space, values in neighbours[UNSEEN].distances.items()
    }
    memorisation = {nodules.name: measure_memorisation(nodules, neighbours[nodules.name], limits) for nodules in sets}
    write_report(args, describe_setting(args, windows, unseen, training, guiding), diversity, memorisation, limits)
    draw_distances(args.output_dir / "diversity.png", neighbours, limits)
    draw_closest(args.output_dir / "closest.png", sets, neighbours)


if __name__ == "__main__":
    main()
