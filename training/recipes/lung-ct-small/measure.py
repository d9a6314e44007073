"""Measure a checkpoint on slices of validation patients: reconstruction, obedience to the map, nodules, malignancy guidance.

    python training/recipes/lung-ct-small/measure.py --dataset_name lung-ct-small-data --output_dir measured

Prints and writes `measured.json`; draws `samples.png` (map | real | generated) and `guidance.png` (benign to malignant at each scale).
The nodules of the maps are rated LIDC-IDRI nodules of validation patients set into slices of validation patients.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation, distance_transform_edt
from scipy.stats import wasserstein_distance
from skimage.morphology import disk

from lsdm_diffusers import LSDMGuidedPipeline, find_nodules, semantic_map_from_hu, small_checkpoint
from lsdm_diffusers.ct_dataset import nodule_crops
from lsdm_diffusers.semantic_map import PALETTE, SemanticLabel


def dice(a, b):
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def nodule_regions(semantic_map, nodule):
    """Mask of the nodule, of the dilated nodule, and of the lung 4..10 pixels around it, free of other nodules."""
    mask = nodule.mask(semantic_map.shape)
    around = binary_dilation(mask, disk(10)) & ~binary_dilation(mask, disk(4)) & (semantic_map == SemanticLabel.LUNG)
    return mask, binary_dilation(mask, disk(6)), around


def texture_rating(row, nodule):
    """The texture rating (1 ground glass .. 5 solid) of the dataset's nodule whose centroid is nearest."""
    distance = [np.hypot(*np.subtract(rated["centroid_yx"], nodule.centroid_yx)) for rated in row["nodules"]]
    return row["nodules"][int(np.argmin(distance))]["texture"]


def nodule_area(hu, dilated):
    """Pixels above -400 HU within the dilated nodule."""
    return int((hu[dilated] > -400).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--pretrained_model_name_or_path", default=None, help="default: the shipped checkpoint")
    parser.add_argument("--num_slices", type=int, default=8, help="validation slices for reconstruction and obedience")
    parser.add_argument("--num_crops", type=int, default=352, help="validation nodule crops for reconstruction")
    parser.add_argument("--num_guided", type=int, default=3, help="validation slices for guidance")
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 4, 16])
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    args.output_dir.mkdir(parents=True, exist_ok=True)
    pipe = LSDMGuidedPipeline.from_pretrained(args.pretrained_model_name_or_path or small_checkpoint())
    validation = load_dataset(args.dataset_name, split="validation")
    rows = np.flatnonzero(np.array(validation["kind"]) == "slice_with_nodules")
    rows = [validation[int(rows[i])] for i in np.linspace(0, len(rows) - 1, args.num_slices).astype(int)]

    def generate(semantic_map, features=None, scale=1.0):
        generator = torch.Generator().manual_seed(0)
        return pipe(semantic_map, features, args.num_inference_steps, scale, generator=generator, output_type="hu").images[0]

    measured = {"psnr": [], "nodule_psnr": [], "mae_hu": [], "dice_lung": [], "dice_body": [], "dice_bone": []}
    measured |= {f"{kind}_contrast_hu": [] for kind in ("nodule", "real_nodule", "solid_nodule", "real_solid_nodule")}
    pictures = []
    for crop, _ in islice(nodule_crops(validation), args.num_crops):
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
        again = semantic_map_from_hu(made, row["pixel_spacing_mm"])
        lung, lung_again = labels >= SemanticLabel.LUNG, again >= SemanticLabel.LUNG
        measured["dice_lung"].append(dice(lung, lung_again))
        measured["dice_body"].append(dice((labels > 0) & ~lung, (again > 0) & ~lung_again))
        measured["dice_bone"].append(dice(labels == SemanticLabel.HIGH_DENSITY, again == SemanticLabel.HIGH_DENSITY))
        for nodule in find_nodules(labels):
            mask, _, around = nodule_regions(labels, nodule)
            if mask.sum() >= 12 and around.any():
                for kind, image in (("nodule", made), ("real_nodule", hu)):
                    contrast = float(image[mask].mean() - image[around].mean())
                    measured[f"{kind}_contrast_hu"].append(contrast)
                    if texture_rating(row, nodule) >= 4:
                        measured[f"{kind.replace('nodule', 'solid_nodule')}_contrast_hu"].append(contrast)
        pictures.append((labels, hu, made))

    guided = {"none": [], **{f"{kind} s={scale:g}": [] for scale in args.scales for kind in ("benign", "malignant")}}
    elsewhere = {name: [] for name in guided if name != "none"}
    strips = []
    for labels, _, plain in [picture for picture in pictures if find_nodules(picture[0])][: args.num_guided]:
        nodules = [(nodule, *nodule_regions(labels, nodule)[:2]) for nodule in find_nodules(labels)]
        far = distance_transform_edt(~np.any([mask for _, mask, _ in nodules], axis=0)) > 32
        runs = {"none": plain}
        for scale in args.scales:
            for kind in ("benign", "malignant"):
                runs[f"{kind} s={scale:g}"] = generate(labels, {"malignancy": kind}, scale)
        for name, hu in runs.items():
            guided[name] += [nodule_area(hu, dilated) for _, _, dilated in nodules]
            if name != "none":
                elsewhere[name].append(float(np.abs(hu.astype(int) - plain)[far].mean()))
        largest = max(nodules, key=lambda entry: entry[0].area)[0]
        y, x = (min(max(int(c) - 32, 0), 448) for c in largest.centroid_yx)
        order = [f"benign s={s:g}" for s in reversed(args.scales)] + ["none"] + [f"malignant s={s:g}" for s in args.scales]
        strips.append((labels[y : y + 64, x : x + 64], [(name, runs[name][y : y + 64, x : x + 64]) for name in order]))

    measured = {name: values for name, values in measured.items() if values}
    summary = {name: {"mean": float(np.mean(values)), "worst": float(np.min(values)), "n": len(values)} for name, values in measured.items()}
    real, made = (np.concatenate([picture[i].ravel() for picture in pictures]) for i in (1, 2))
    drawn = np.concatenate([picture[0].ravel() for picture in pictures])
    summary["hu_wasserstein_over_spread"] = {
        label.name.lower(): float(wasserstein_distance(real[drawn == label], made[drawn == label]) / real[drawn == label].std())
        for label in SemanticLabel
        if label != SemanticLabel.BACKGROUND and (drawn == label).any()
    }
    summary["guidance_mean_area_px"] = {name: float(np.mean(values)) for name, values in guided.items()}
    summary["guidance_change_beyond_32px_hu"] = {name: float(np.mean(values)) for name, values in elsewhere.items()}
    summary["guided_nodules"] = len(guided["none"])
    for kind in ("solid_nodule", "real_solid_nodule"):
        summary[f"{kind}s_below_200_hu"] = int(np.sum(np.array(measured.get(f"{kind}_contrast_hu", [])) < 200))
    (args.output_dir / "measured.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))

    figure = Figure(figsize=(12, 4 * len(pictures)), layout="constrained")
    for axes, panels in zip(np.atleast_2d(figure.subplots(len(pictures), 3)), pictures, strict=True):
        for axis, panel, title in zip(axes, panels, ("semantic map", "real", "generated"), strict=True):
            shown = PALETTE[panel] if title == "semantic map" else panel
            axis.imshow(shown, cmap="gray", vmin=-1350, vmax=500)
            axis.set_title(title)
            axis.axis("off")
    figure.savefig(args.output_dir / "samples.png", dpi=60)
    figure = Figure(figsize=(2 * (2 + 2 * len(args.scales)), 2.2 * len(strips)), layout="constrained")
    for axes, (labels, crops) in zip(np.atleast_2d(figure.subplots(len(strips), 2 + 2 * len(args.scales))), strips, strict=True):
        axes[0].imshow(PALETTE[labels])
        axes[0].set_title("map", fontsize=9)
        for axis, (name, crop) in zip(axes[1:], crops, strict=True):
            axis.imshow(crop, cmap="gray", vmin=-1350, vmax=150)
            axis.set_title(name, fontsize=9)
        for axis in axes:
            axis.axis("off")
    figure.savefig(args.output_dir / "guidance.png", dpi=90)


if __name__ == "__main__":
    main()
