"""Measure edits of a whole series: nodules inserted into 3D, and removed again.

    python training/evaluate_series_edit.py --dicom_dir scan --output_dir edited-series

Nodules of `--diameters_mm` are inserted at random free places of the lungs, each into the series as it was, and then
removed again. Writes `series.json`, `series.md` and the picture `series.png` (axial and coronal cuts of the series
before, with the nodule, and with it removed):

- pixels outside the mask that changed;
- Dice of the tissue that is seen with the wished mask in 3D, and the error of its diameter;
- correlation of the areas of tissue, slice by slice, with those of the mask;
- mean HU of the nodule, and the deviation of the means of its slices, which a jump of brightness makes large;
- mean difference of neighbouring slices inside the nodule;
- what the lung measures where the nodule was removed, beside the same place before;
- seconds of an edit and of a slice of it, over those of a whole slice of the same steps.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from tqdm.auto import tqdm

from lsdm_diffusers import (
    LSDMGuidedPipeline,
    LSDMInpaintPipeline,
    insert_nodule_3d,
    remove_nodule_3d,
    semantic_map_from_hu,
    small_checkpoint,
)
from lsdm_diffusers.evaluation.measures import LUNG_LIMIT_HU
from lsdm_diffusers.evaluation.panels import panel_grid, show_hu
from lsdm_diffusers.evaluation.tables import markdown_table, write_json
from lsdm_diffusers.io.atomic_write import write_atomically
from lsdm_diffusers.io.dicom import CtSeries, read_series
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.series_edits import EditedSeries

ROOM_MM = 4.0  # of lung beyond an inserted nodule
MIN_LUNG = 0.1  # share of a slice that is lung where nodules are inserted
CORE_PIXELS = 2  # from the outline; the core of a nodule has no partial volume
DEPICTED, CLOSE_UP = 4, 96  # nodules of the picture, and its edge in pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dicom_dir", required=True, help="folder of a series of axial CT")
    parser.add_argument("--num_nodules", type=int, default=12, help="nodules in all (default: 12)")
    parser.add_argument(
        "--diameters_mm", type=float, nargs="+", default=[8, 12, 16, 20], help="of the nodules, in turn"
    )
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped checkpoint"
    )
    parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="of places and noise (default: 0)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the report")
    args = parser.parse_args()
    for name in ("num_nodules", "num_inference_steps"):
        if getattr(args, name) < 1:
            raise SystemExit(f"--{name} is {getattr(args, name)}, but at least 1 is needed.")
    return args


def free_place(
    series: CtSeries, maps: dict[int, np.ndarray], diameter_mm: float, places: np.random.Generator
) -> tuple[int, float, float]:
    """Slice, row and column of a random place of a lung with room for a nodule."""
    reach = diameter_mm / 2 + ROOM_MM
    for _ in range(200):
        index = int(places.integers(len(series.hu)))
        if index not in maps:
            maps[index] = semantic_map_from_hu(series.hu[index], series.pixel_spacing_mm)
        lung = maps[index] == SemanticLabel.LUNG
        beyond = [round(index + sign * reach / series.slice_spacing_mm) for sign in (-1, 1)]
        if lung.mean() < MIN_LUNG or min(beyond) < 0 or max(beyond) >= len(series.hu):
            continue
        free = distance_transform_edt(lung) * series.pixel_spacing_mm > reach
        for other in beyond:  # the lung must go on above and below
            if other not in maps:
                maps[other] = semantic_map_from_hu(series.hu[other], series.pixel_spacing_mm)
            free &= maps[other] == SemanticLabel.LUNG
        if free.any():
            row, column = np.argwhere(free)[places.integers(int(free.sum()))]
            return index, float(row), float(column)
    raise SystemExit(f"evaluate_series_edit.py: no free place for a nodule of {diameter_mm:g} mm was found")


def inserted_figures(series: CtSeries, edit: EditedSeries) -> dict[str, float]:
    """What is seen of an inserted nodule."""
    tissue = (edit.hu > LUNG_LIMIT_HU) & edit.mask
    voxel = series.pixel_spacing_mm**2 * series.slice_spacing_mm
    part = np.flatnonzero(edit.nodule.any((1, 2)))
    seen, wished = tissue[part].sum((1, 2)), edit.nodule[part].sum((1, 2))
    core = np.stack([distance_transform_edt(mask) > CORE_PIXELS for mask in edit.nodule[part]])
    slices = [hu[mask].mean() for hu, mask in zip(edit.hu[part], core, strict=True) if mask.any()]
    pairs = edit.nodule[part][1:] & edit.nodule[part][:-1]
    steps = np.abs(np.diff(edit.hu[part].astype(np.float64), axis=0))
    diameters = [(6 * count * voxel / np.pi) ** (1 / 3) for count in (tissue.sum(), edit.nodule.sum())]
    return {
        "changed_outside": float((edit.hu != series.hu)[~edit.mask].sum()),
        "dice": float(2 * (tissue & edit.nodule).sum() / (tissue.sum() + edit.nodule.sum())),
        "diameter_error_mm": float(abs(diameters[0] - diameters[1])),
        "area_correlation": float(np.corrcoef(seen, wished)[0, 1]) if len(part) > 2 and seen.std() > 0 else np.nan,
        "mean_hu": float(edit.hu[edit.nodule].mean()),
        "core_hu": float(np.mean(slices)) if slices else np.nan,
        "deviation_of_slice_means_hu": float(np.std(slices)) if len(slices) > 1 else np.nan,
        "difference_of_neighbours_hu": float(steps[pairs].mean()) if pairs.any() else np.nan,
    }


def removed_figures(before: np.ndarray, edit: EditedSeries) -> dict[str, float]:
    """What lung measures where a nodule was removed, and at the same place before it was inserted."""
    figures: dict[str, float] = {}
    for name, hu in (("removed", edit.hu), ("before", before)):
        values = hu[edit.nodule].astype(np.float64)
        figures |= {f"{name}_mean_hu": float(values.mean()), f"{name}_deviation_hu": float(values.std())}
    return figures


def cuts(hu: np.ndarray, centre: tuple[int, float, float], stretch: float) -> list[np.ndarray]:
    """Close-ups of the axial and the coronal cut through a nodule; `stretch` is the height of a slice in pixels."""
    index, row, column = (round(value) for value in centre)
    half = CLOSE_UP // 2
    rows = np.clip(np.arange(row - half, row + half), 0, hu.shape[1] - 1)
    columns = np.clip(np.arange(column - half, column + half), 0, hu.shape[2] - 1)
    heights = np.clip(np.round(index - np.arange(-half, half) / stretch).astype(int), 0, len(hu) - 1)
    return [hu[index][np.ix_(rows, columns)], hu[:, row][np.ix_(heights, columns)]]


def main() -> None:
    args = parse_args()
    try:
        series = read_series(args.dicom_dir)
    except ValueError as error:
        raise SystemExit(f"evaluate_series_edit.py: {error}") from None
    pipe: Any = LSDMInpaintPipeline.from_pretrained(args.pretrained_model_name_or_path or small_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.to(memory_format=torch.channels_last)  # faster on a CPU
    places = np.random.default_rng(args.seed)
    maps: dict[int, np.ndarray] = {}
    spacing, edge, steps = series.slice_spacing_mm, series.pixel_spacing_mm, args.num_inference_steps
    rows: list[dict[str, float]] = []
    pictures: list[list[np.ndarray]] = []
    seconds, per_slice = [], []
    for number in tqdm(range(args.num_nodules), desc="nodules"):
        diameter = args.diameters_mm[number % len(args.diameters_mm)]
        centre = free_place(series, maps, diameter, places)
        wish = {"malignancy": "malignant" if number % 2 else "benign"}
        seed = 1000 * args.seed + number
        start = time.perf_counter()
        inserted = insert_nodule_3d(
            pipe, series.hu, centre, diameter, spacing, wish, "smooth", edge, seed=seed, num_inference_steps=steps
        )
        seconds.append(time.perf_counter() - start)
        per_slice.append(seconds[-1] / int(inserted.mask.any((1, 2)).sum()))
        removed = remove_nodule_3d(
            pipe, inserted.hu, inserted.nodule, spacing, edge, seed=seed + 500, num_inference_steps=steps
        )
        rows.append(inserted_figures(series, inserted) | removed_figures(series.hu, removed))
        if len(pictures) < DEPICTED:
            volumes = (series.hu, inserted.hu, removed.hu)
            pictures.append([cut for hu in volumes for cut in cuts(hu, centre, spacing / edge)])

    whole_slice: Any = LSDMGuidedPipeline(**pipe.components)
    whole_slice.set_progress_bar_config(disable=True)
    start = time.perf_counter()
    whole_slice(maps[min(maps)], num_inference_steps=steps, output_type="hu")
    whole_seconds = time.perf_counter() - start
    results = {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
    speed = {
        "seconds_of_an_edit": float(np.median(seconds)),
        "seconds_of_a_slice_of_an_edit": float(np.median(per_slice)),
        "seconds_of_a_whole_slice": whole_seconds,
        "ratio": float(np.median(per_slice)) / whole_seconds,
    }
    write_json(args.output_dir / "series.json", {"nodules": rows, "means": results, "speed": speed})
    lines = [[name, f"{value:.3g}"] for name, value in (results | speed).items()]
    text = markdown_table(["", f"mean of {len(rows)} nodules"], lines) + "\n"
    write_atomically(args.output_dir / "series.md", text.encode())
    titles = [f"{name}, {cut}" for name in ("before", "inserted", "removed") for cut in ("axial", "coronal")]
    figure, axes = panel_grid(len(pictures), len(titles))
    for line, images in zip(axes, pictures, strict=True):
        for axis, image in zip(line, images, strict=True):
            show_hu(axis, image)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    figure.savefig(args.output_dir / "series.png", dpi=90)
    print(text)


if __name__ == "__main__":
    main()
