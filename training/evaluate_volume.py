"""Do neighbouring slices of a generated volume agree as those of a real series do?

    python training/evaluate_volume.py --dicom_dir LIDC-IDRI-0001 --output_dir volume

The maps are made from neighbouring slices of a real series. The volume is sampled twice: from independent noise, and
with `volume=True`. Writes `volume.json` and `volume.md` with the mean change of HU from slice to slice over that of
the series (1 is right), in body and lung, and the correlation of neighbours; and `volume.png` with axial, coronal and
sagittal cuts of both volumes and of the series.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from lsdm_diffusers import LSDMGuidedPipeline, semantic_map_from_hu, small_checkpoint
from lsdm_diffusers.evaluation.panels import panel_grid, show_hu
from lsdm_diffusers.evaluation.tables import markdown_table, write_json
from lsdm_diffusers.hounsfield import HU_MAX, HU_MIN
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.io.dicom import index_dicom, read_slice
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.outside_body import blanked

CUTS = ("axial", "coronal", "sagittal")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dicom_dir", type=Path, required=True, help="folder with a CT series")
    parser.add_argument("--num_slices", type=int, default=24, help="neighbouring slices, from its middle (default 24)")
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped checkpoint"
    )
    parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default 25)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the report")
    args = parser.parse_args()
    if args.num_slices < 2:
        raise SystemExit(f"--num_slices is {args.num_slices}, but at least 2 are needed.")
    return args


def read_series(folder: Path, num_slices: int) -> tuple[np.ndarray, float, float]:
    """Neighbouring slices from the middle of the largest series, (Z, H, W) in HU; spacing of slices and of pixels, mm.

    Raises:
        ValueError: for too few slices, or slices that are not evenly spaced.
    """
    series, _ = index_dicom(folder)
    files = max(series.values(), key=len, default=[])
    ordered = sorted((file for file in files if file.z_mm is not None), key=lambda file: file.z_mm or 0.0)
    if len(ordered) < num_slices:
        raise ValueError(f"--dicom_dir {folder} has a series of {len(ordered)} slices, but {num_slices} are needed.")
    first = (len(ordered) - num_slices) // 2
    slices = [read_slice(file.path) for file in ordered[first : first + num_slices]]
    distances = np.diff([file.z_mm for file in ordered[first : first + num_slices]])
    if np.ptp(distances) > 0.01 * distances.mean():
        raise ValueError(f"--dicom_dir {folder}: slices lie {distances.min()} to {distances.max()} mm apart.")
    return np.stack([one.hu for one in slices]), float(distances.mean()), slices[0].pixel_spacing_mm


def agreement(volume: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """Mean absolute change of HU and mean correlation of neighbouring slices, where both are of a tissue."""
    changes, correlations = [], []
    for one, other, first, second in zip(volume, volume[1:], where, where[1:], strict=False):
        both = first & second
        changes.append(np.abs(one[both] - other[both]).mean())
        correlations.append(np.corrcoef(one[both], other[both])[0, 1])
    return float(np.mean(changes)), float(np.mean(correlations))


def main() -> None:
    args = parse_args()
    try:
        hu, slice_spacing, pixel_spacing = read_series(args.dicom_dir, args.num_slices)
    except ValueError as error:
        raise SystemExit(f"evaluate_volume.py: {error}") from None
    maps = np.stack([semantic_map_from_hu(one, pixel_spacing) for one in hu])
    real = np.stack([blanked(one, labels) for one, labels in zip(hu, maps, strict=True)])
    pipe = LSDMGuidedPipeline.from_pretrained(args.pretrained_model_name_or_path or small_checkpoint())
    pipe.vae.to(memory_format=torch.channels_last)  # faster on a CPU
    pipe.set_progress_bar_config(desc="volume")
    options = {"num_inference_steps": args.num_inference_steps, "output_type": "hu"}
    independent = np.concatenate(
        [
            pipe(labels, generator=torch.Generator().manual_seed(args.seed + number), **options).images
            for number, labels in enumerate(maps)
        ]
    )
    generator = torch.Generator().manual_seed(args.seed)
    together = pipe(maps, volume=True, slice_spacing_mm=slice_spacing, generator=generator, **options).images

    volumes = {"series": real, "independent noise": independent, "volume=True": together}
    volumes = {name: np.clip(volume, HU_MIN, HU_MAX).astype(np.float64) for name, volume in volumes.items()}
    tissues = {"body": (maps > 0) & (maps != SemanticLabel.LUNG), "lung": maps == SemanticLabel.LUNG}
    rows, results = [], {}
    for tissue, where in tissues.items():
        measured = {name: agreement(volume, where) for name, volume in volumes.items()}
        for name, (change, correlation) in measured.items():
            ratio = change / measured["series"][0]
            results[f"{tissue}, {name}"] = {"change_hu": change, "over_series": ratio, "correlation": correlation}
            rows.append([tissue, name, f"{change:.1f}", f"{ratio:.2f}", f"{correlation:.2f}"])
    write_json(args.output_dir / "volume.json", {"slice_spacing_mm": slice_spacing, "results": results})
    text = markdown_table(["tissue", "volume", "change, HU", "over the series", "correlation"], rows) + "\n"
    write_atomically(args.output_dir / "volume.md", text.encode())

    stretch = max(1, round(slice_spacing / pixel_spacing))
    figure, axes = panel_grid(len(volumes), len(CUTS), width=3.2)
    for line, (name, volume) in zip(axes, volumes.items(), strict=True):
        tall = np.repeat(volume[::-1], stretch, axis=0)
        middle = [edge // 2 for edge in volume.shape]
        cuts = (volume[middle[0]], tall[:, middle[1]], tall[:, :, middle[2] // 2])
        for axis, cut, title in zip(line, cuts, CUTS, strict=True):
            show_hu(axis, cut)
            axis.set_title(f"{name}, {title}", fontsize=8)
    figure.savefig(args.output_dir / "volume.png", dpi=90)
    print(f"{args.num_slices} slices, {slice_spacing:g} mm apart\n\n{text}")


if __name__ == "__main__":
    main()
