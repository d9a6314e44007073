"""Measure a checkpoint on slices of validation patients (or of `--split`): reconstruction, obedience to the map, densities, nodules.

    python training/recipes/lung-ct-small/measure.py --dataset_name lung-ct-small-data --output_dir measured

Prints and writes `measured.json`; draws `samples.png` (map | real | generated) of eight slices. The nodules of the maps are rated LIDC-IDRI
nodules of validation patients set into slices of validation patients. Distances of HU histograms (Wasserstein-1 over the standard deviation
of the real values) stand beside those of real slices of the other split's patients: what another set of patients costs.
`training/evaluate_control.py` measures guidance.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import load_dataset
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation, label
from scipy.stats import wasserstein_distance
from skimage.morphology import disk

from lsdm_diffusers import LSDMGuidedPipeline, find_nodules, small_checkpoint
from lsdm_diffusers.data.dataset import nodule_crops
from lsdm_diffusers.evaluation.obedience import hu_by_label, label_dice
from lsdm_diffusers.evaluation.slices import nearest_entry
from lsdm_diffusers.labels import PALETTE, SemanticLabel


def nodule_regions(semantic_map, nodule):
    """Mask of the nodule, and of the lung 4..10 pixels around it, free of other nodules."""
    mask = nodule.mask(semantic_map.shape)
    return mask, binary_dilation(mask, disk(10)) & ~binary_dilation(mask, disk(4)) & (
        semantic_map == SemanticLabel.LUNG
    )


def lung_difference(semantic_map, hu):
    """|HU of one lung - HU of the other|, means over the two largest pieces of lung; None where these are not two lungs."""
    pieces, _ = label(semantic_map == SemanticLabel.LUNG)
    areas = np.bincount(pieces.ravel())[1:]
    first, second = (np.argsort(areas)[::-1][:2] + 1) if len(areas) > 1 else (0, 0)
    if not first or areas[second - 1] < areas[first - 1] / 4:
        return None
    return float(abs(hu[pieces == first].mean() - hu[pieces == second].mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--pretrained_model_name_or_path", default=None, help="default: the shipped checkpoint")
    parser.add_argument(
        "--split",
        choices=["validation", "train"],
        default="validation",
        help="train: how far other patients are to blame",
    )
    parser.add_argument("--num_slices", type=int, default=30, help="slices")
    parser.add_argument("--num_crops", type=int, default=352, help="nodule crops for reconstruction")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="of sampling; bf16 needs hardware for it",
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    args.output_dir.mkdir(parents=True, exist_ok=True)
    pipe = LSDMGuidedPipeline.from_pretrained(args.pretrained_model_name_or_path or small_checkpoint())
    splits = load_dataset(args.dataset_name)
    other = splits[{"validation": "train", "train": "validation"}[args.split]]

    def slices_of(split):
        rows = np.flatnonzero(np.array(split["kind"]) == "slice_with_nodules")
        return [
            split[int(rows[i])] for i in np.linspace(0, len(rows) - 1, min(args.num_slices, len(rows))).astype(int)
        ]

    rows = slices_of(splits[args.split])

    accelerator = Accelerator(mixed_precision=args.mixed_precision)

    def generate(semantic_map):
        generator = torch.Generator().manual_seed(0)
        with accelerator.autocast():
            return pipe(
                semantic_map, num_inference_steps=args.num_inference_steps, generator=generator, output_type="hu"
            ).images[0]

    measured = {"psnr": [], "nodule_psnr": [], "mae_hu": [], "dice_lung": [], "dice_body": [], "dice_bone": []}
    measured |= {"lung_difference_hu": [], "real_lung_difference_hu": []}
    measured |= {f"{kind}_contrast_hu": [] for kind in ("nodule", "real_nodule", "solid_nodule", "real_solid_nodule")}
    pictures = []
    for crop, _ in islice(nodule_crops(splits[args.split]), args.num_crops):
        with torch.no_grad():
            pixels = torch.from_numpy(crop.copy())[None, None]
            rebuilt = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        measured["nodule_psnr"].append(10 * np.log10(4 / (rebuilt - pixels).pow(2).mean().item()))
    for row in rows:
        hu, labels = np.asarray(row["image"]).astype(int) - 1024, np.asarray(row["semantic_map"])
        with torch.no_grad():
            pixels = torch.from_numpy((hu + 1024) / np.float32(912) - 1).float()[None, None]
            rebuilt = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        measured["psnr"].append(10 * np.log10(4 / (rebuilt - pixels).pow(2).mean().item()))
        measured["mae_hu"].append((rebuilt - pixels).abs().mean().item() * 912)
        made = generate(labels)
        for name, value in label_dice(labels, made, row["pixel_spacing_mm"]).items():
            measured[name].append(value)
        if (difference := lung_difference(labels, made)) is not None:
            measured["lung_difference_hu"].append(difference)
            measured["real_lung_difference_hu"].append(lung_difference(labels, hu))
        for nodule in find_nodules(labels):
            mask, around = nodule_regions(labels, nodule)
            if mask.sum() >= 12 and around.any():
                for kind, image in (("nodule", made), ("real_nodule", hu)):
                    contrast = float(image[mask].mean() - image[around].mean())
                    measured[f"{kind}_contrast_hu"].append(contrast)
                    if nearest_entry(row["nodules"], nodule.centroid_yx)["texture"] >= 4:
                        measured[f"{kind.replace('nodule', 'solid_nodule')}_contrast_hu"].append(contrast)
        pictures.append((labels, hu, made))

    measured = {name: values for name, values in measured.items() if values}
    summary = {
        name: {"mean": float(np.mean(values)), "lowest": float(np.min(values)), "n": len(values)}
        for name, values in measured.items()
    }
    others = slices_of(other)
    others = hu_by_label(
        [np.asarray(row["semantic_map"]) for row in others],
        [np.asarray(row["image"]).astype(int) - 1024 for row in others],
    )
    summary["hu"] = {}
    maps, of_real, of_generated = zip(*pictures, strict=True)
    of_real, of_generated = hu_by_label(maps, of_real), hu_by_label(maps, of_generated)
    for name, real in of_real.items():
        made = of_generated[name]
        figures = {
            "real_mean": real.mean(),
            "real_deviation": real.std(),
            "generated_mean": made.mean(),
            "generated_deviation": made.std(),
        }
        figures["wasserstein_over_spread"] = wasserstein_distance(real, made) / real.std()
        if name in others:
            figures["wasserstein_over_spread_of_other_patients"] = (
                wasserstein_distance(real, others[name]) / real.std()
            )
        summary["hu"][name] = {key: float(value) for key, value in figures.items()}
    for kind in ("solid_nodule", "real_solid_nodule"):
        summary[f"{kind}s_below_200_hu"] = int(np.sum(np.array(measured.get(f"{kind}_contrast_hu", [])) < 200))
    (args.output_dir / "measured.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))

    pictures = [pictures[i] for i in np.linspace(0, len(pictures) - 1, min(8, len(pictures))).astype(int)]
    figure = Figure(figsize=(12, 4 * len(pictures)), layout="constrained")
    for axes, panels in zip(np.atleast_2d(figure.subplots(len(pictures), 3)), pictures, strict=True):
        for axis, panel, title in zip(axes, panels, ("semantic map", "real", "generated"), strict=True):
            shown = PALETTE[panel] if title == "semantic map" else panel
            axis.imshow(shown, cmap="gray", vmin=-1350, vmax=500)
            axis.set_title(title)
            axis.axis("off")
    figure.savefig(args.output_dir / "samples.png", dpi=60)


if __name__ == "__main__":
    main()
