"""Measure a checkpoint on slices of validation patients: reconstruction, obedience to the map, densities, nodules.

    python training/recipes/lung-ct-small/measure.py --dataset_name lung-ct-small-data --output_dir measured

Prints and writes `measured.json`, and draws `samples.png` (map, real, generated) of eight slices. The nodules of the
maps are rated LIDC-IDRI nodules of validation patients, set into slices of validation patients. Distances of HU
histograms (Wasserstein-1 over the standard deviation of the real values) stand beside those of the other split's real
slices: what another set of patients costs. `training/evaluate_control.py` measures guidance.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, load_dataset
from diffusers import AutoencoderKL
from scipy.ndimage import distance_transform_edt, label

from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
from lsdm_diffusers.data.dataset import nodule_crops
from lsdm_diffusers.evaluation.images import reconstruct, sample_hu
from lsdm_diffusers.evaluation.metrics import psnr
from lsdm_diffusers.evaluation.obedience import hu_by_label, hu_distances, label_dice
from lsdm_diffusers.evaluation.panels import panel_grid, show_hu, show_map
from lsdm_diffusers.evaluation.slices import (
    EvaluationSlice,
    evenly_spread,
    nearest_entry,
    pixels_from_hu,
    read_slice,
)
from lsdm_diffusers.evaluation.tables import write_json
from lsdm_diffusers.hounsfield import HU_RANGE
from lsdm_diffusers.labels import SemanticLabel

SLICE_KIND = "slice_with_nodules"  # of the recipe's dataset
SEED = 0  # of every slice's noise
SURROUNDINGS = (4, 10)  # distance from a nodule in pixels of the lung that it is compared with
MIN_NODULE_PIXELS = 12  # smaller nodules have no mean density of their own
SOLID_TEXTURE = 4  # rating from which a nodule is solid
FAINT_CONTRAST_HU = 200  # a solid nodule of less contrast to the lung is hard to see
MIN_LUNG_SHARE = 0.25  # of the larger lung: a smaller second piece is not the other lung
DEPICTED = 8  # slices in samples.png
PICTURE_WINDOW = (-425, 1850)  # HU, centre and width: lung and bone in one picture


class Sample(NamedTuple):
    """A slice and what was generated from its map, (H, W) in HU."""

    slice: EvaluationSlice
    generated: np.ndarray


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="folder of the recipe's dataset")
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped checkpoint"
    )
    parser.add_argument(
        "--split",
        choices=["validation", "train"],
        default="validation",
        help="split to measure on; train shows how much of an error comes from unseen patients",
    )
    parser.add_argument("--num_slices", type=int, default=30, help="number of slices, evenly spread over the split")
    parser.add_argument("--num_crops", type=int, default=352, help="number of nodule crops that are reconstructed")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="number of denoising steps")
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="precision of sampling; bf16 needs hardware that supports it",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of measured.json and samples.png")
    return parser.parse_args()


def recipe_slices(split: Dataset, number: int) -> list[EvaluationSlice]:
    """At most `number` of the slices that the recipe set nodules into, evenly spread over the split."""
    rows = split.select(np.flatnonzero(np.array(split["kind"]) == SLICE_KIND))
    return [read_slice(rows[index], index) for index in evenly_spread(len(rows), number)]


def lung_difference(semantic_map: np.ndarray, hu: np.ndarray) -> float | None:
    """|mean HU of one lung - mean HU of the other|; None where the map does not show two lungs."""
    pieces, _ = label(semantic_map == SemanticLabel.LUNG)
    areas = np.bincount(pieces.ravel())[1:]
    if len(areas) < 2:
        return None
    second, first = np.argsort(areas)[-2:]
    if areas[second] < MIN_LUNG_SHARE * areas[first]:
        return None
    return float(abs(hu[pieces == first + 1].mean() - hu[pieces == second + 1].mean()))


def nodule_contrasts(sample: Sample) -> dict[str, list[float]]:
    """Mean HU of each nodule minus that of the lung around it, in the generated and in the real slice."""
    ct_slice = sample.slice
    contrasts: dict[str, list[float]] = defaultdict(list)
    for nodule in ct_slice.nodules:
        mask = nodule.mask(ct_slice.semantic_map.shape)
        distance = distance_transform_edt(~mask)
        near = (distance > SURROUNDINGS[0]) & (distance <= SURROUNDINGS[1])
        surroundings = near & (ct_slice.semantic_map == SemanticLabel.LUNG)
        if mask.sum() < MIN_NODULE_PIXELS or not surroundings.any():
            continue
        texture = nearest_entry(ct_slice.entries, nodule.centroid_yx)["texture"]
        solid = texture is not None and texture >= SOLID_TEXTURE
        for prefix, image in (("", sample.generated), ("real_", ct_slice.hu)):
            contrast = float(image[mask].mean() - image[surroundings].mean())
            contrasts[f"{prefix}nodule_contrast_hu"].append(contrast)
            if solid:
                contrasts[f"{prefix}solid_nodule_contrast_hu"].append(contrast)
    return contrasts


def measure_reconstruction(vae: AutoencoderKL, split: Dataset, samples: Sequence[Sample], num_crops: int) -> dict:
    """PSNR of nodule crops and slices, and the mean error of slices in HU, encoded and decoded."""
    values: dict[str, list[float]] = defaultdict(list)
    for crop, _ in islice(nodule_crops(split), num_crops):
        pixels = torch.from_numpy(crop.copy())[None, None]
        values["nodule_psnr"].append(psnr(pixels, reconstruct(vae, pixels).clamp(-1, 1)).item())
    for sample in samples:
        pixels = pixels_from_hu([sample.slice.hu])
        rebuilt = reconstruct(vae, pixels).clamp(-1, 1)
        values["psnr"].append(psnr(pixels, rebuilt).item())
        values["mae_hu"].append((rebuilt - pixels).abs().mean().item() * HU_RANGE / 2)
    return values


def measure_samples(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Dice of the labels, difference between the lungs, and contrasts of nodules."""
    values: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        ct_slice = sample.slice
        for name, value in label_dice(ct_slice.semantic_map, sample.generated, ct_slice.pixel_spacing).items():
            values[name].append(value)
        difference = lung_difference(ct_slice.semantic_map, sample.generated)
        real_difference = lung_difference(ct_slice.semantic_map, ct_slice.hu)
        if difference is not None and real_difference is not None:
            values["lung_difference_hu"].append(difference)
            values["real_lung_difference_hu"].append(real_difference)
        for name, contrasts in nodule_contrasts(sample).items():
            values[name] += contrasts
    return values


def summarise(values: dict[str, list[float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        name: {"mean": float(np.mean(column)), "lowest": float(np.min(column)), "n": len(column)}
        for name, column in values.items()
    }
    for name in ("solid_nodule", "real_solid_nodule"):
        faint = np.array(values.get(f"{name}_contrast_hu", [])) < FAINT_CONTRAST_HU
        summary[f"{name}s_below_{FAINT_CONTRAST_HU}_hu"] = int(faint.sum())
    return summary


def measure_densities(samples: Sequence[Sample], others: Sequence[EvaluationSlice]) -> dict[str, dict[str, float]]:
    """Mean and deviation of HU by label, and how far the generated and other patients' HU are from the real ones."""
    maps = [sample.slice.semantic_map for sample in samples]
    real = hu_by_label(maps, [sample.slice.hu for sample in samples])
    generated = hu_by_label(maps, [sample.generated for sample in samples])
    other = hu_by_label([ct_slice.semantic_map for ct_slice in others], [ct_slice.hu for ct_slice in others])
    distances, other_distances = hu_distances(real, generated), hu_distances(real, other)
    densities = {}
    for name in real:
        densities[name] = {
            "real_mean": float(real[name].mean()),
            "real_deviation": float(real[name].std()),
            "generated_mean": float(generated[name].mean()),
            "generated_deviation": float(generated[name].std()),
            "wasserstein_over_spread": distances[name],
        }
        if name in other_distances:
            densities[name]["wasserstein_over_spread_of_other_patients"] = other_distances[name]
    return densities


def draw_samples(samples: Sequence[Sample], file: Path) -> None:
    """Map, real and generated slice, a line for each sample."""
    figure, axes = panel_grid(len(samples), 3, width=4)
    for line, sample in zip(axes, samples, strict=True):
        show_map(line[0], sample.slice.semantic_map)
        show_hu(line[1], sample.slice.hu, PICTURE_WINDOW)
        show_hu(line[2], sample.generated, PICTURE_WINDOW)
    for axis, title in zip(axes[0], ("semantic map", "real", "generated"), strict=True):
        axis.set_title(title)
    figure.savefig(file, dpi=60)


def main() -> None:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pipe = LSDMGuidedPipeline.from_pretrained(args.pretrained_model_name_or_path or small_checkpoint())
    splits = load_dataset(args.dataset_name)
    slices = recipe_slices(splits[args.split], args.num_slices)
    others = recipe_slices(splits["train" if args.split == "validation" else "validation"], args.num_slices)
    if not slices or not others:
        raise SystemExit(f"--dataset_name {args.dataset_name} has a split without nodules, which cannot be measured.")

    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    samples = []
    for ct_slice in slices:
        with accelerator.autocast():
            images = sample_hu(pipe, [ct_slice.semantic_map], [SEED], num_inference_steps=args.num_inference_steps)
        samples.append(Sample(ct_slice, images[0]))

    values = measure_reconstruction(pipe.vae, splits[args.split], samples, args.num_crops) | measure_samples(samples)
    summary = summarise(values) | {"hu": measure_densities(samples, others)}
    write_json(args.output_dir / "measured.json", summary)
    print(json.dumps(summary, indent=1))
    draw_samples([samples[index] for index in evenly_spread(len(samples), DEPICTED)], args.output_dir / "samples.png")


if __name__ == "__main__":
    main()
