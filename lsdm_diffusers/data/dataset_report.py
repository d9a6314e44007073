"""A picture of a prepared dataset: random slices with maps and outlines, and histograms of the ratings, if any."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from ..hounsfield import window_limits
from ..io.atomic_write import part_file
from ..labels import LABEL_NAMES, PALETTE, SemanticLabel
from ..nodule_features import HIGHEST_RATING, LOWEST_RATING, NODULE_FEATURES
from .dataset import FEATURES, decode_image

WIDTH, SLICE_HEIGHT, HISTOGRAM_HEIGHT, TITLE_HEIGHT = 13.0, 4.2, 3.6, 0.4  # inches
DOTS_PER_INCH = 70
OUTLINES = ((SemanticLabel.LUNG, "deepskyblue"), (SemanticLabel.NODULE_BENIGN, "magenta"))  # around these and higher
RATINGS = range(LOWEST_RATING, HIGHEST_RATING + 1)


def draw_report(output_dir: Path, num_slices: int = 8, seed: int = 0) -> Path:
    """Draw `report.png` in the folder of a dataset; half of its slices have nodules, if there are so many.

    Args:
        output_dir: folder of the dataset.
        num_slices: how many slices are drawn.
        seed: which slices are drawn.

    Returns:
        Path of the picture.
    """
    places: list[tuple[Path, int]] = []  # shard and row of each slice
    nodules: list[list[dict[str, Any]]] = []  # of each slice
    for shard in sorted((output_dir / "data").glob("*.parquet")):
        # the column of nodules alone: the images of all slices would not fit into memory
        column = pq.read_table(shard, columns=["nodules"])["nodules"].to_pylist()
        nodules += column
        places += [(shard, row) for row in range(len(column))]
    with_nodules = np.array([bool(entries) for entries in nodules])
    drawn = _draw_indices(with_nodules, num_slices, np.random.default_rng(seed))

    figure = Figure(figsize=(WIDTH, SLICE_HEIGHT * len(drawn) + HISTOGRAM_HEIGHT + TITLE_HEIGHT), layout="constrained")
    heights = [SLICE_HEIGHT] * len(drawn) + [HISTOGRAM_HEIGHT]
    *slice_rows, ratings_row = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for row, index in zip(slice_rows, drawn, strict=True):
        shard, row_in_shard = places[index]
        table = pq.read_table(shard).slice(row_in_shard, 1)
        _draw_slice(row, FEATURES.decode_example(table.to_pylist()[0]))
    draw_ratings(ratings_row, nodules, f"{len(places)} slices, {int(with_nodules.sum())} with nodules")
    path = output_dir / "report.png"
    with part_file(path) as part:
        figure.savefig(part, dpi=DOTS_PER_INCH, format="png")
    return path


def _draw_indices(with_nodules: np.ndarray, number: int, generator: np.random.Generator) -> list[int]:
    """Random indices in ascending order, half of them of slices with nodules if there are so many."""
    drawn = generator.permutation(np.flatnonzero(with_nodules))[: number // 2].tolist()
    drawn += generator.permutation(np.flatnonzero(~with_nodules))[: number - len(drawn)].tolist()
    return sorted(drawn)


def _draw_slice(figure: SubFigure, sample: dict[str, Any]) -> None:
    """One slice in the lung window, its map, and the slice with the outlines of lungs and nodules."""
    hu, labels = decode_image(sample["image"]), np.asarray(sample["semantic_map"])
    left, middle, right = figure.subplots(1, 3)
    _show_lung_window(left, hu)
    left.set_title("lung window", fontsize=9)
    middle.imshow(PALETTE[labels])
    middle.set_title("semantic map", fontsize=9)
    _show_lung_window(right, hu)
    for level, colour in OUTLINES:
        if (labels >= level).any():
            right.contour(labels >= level, [0.5], colors=colour, linewidths=0.7)
    for nodule in sample["nodules"]:
        y0, _, _, x1 = nodule["box_yxyx"]
        right.annotate(nodule["nodule_id"], (x1 + 2, y0), color="magenta", fontsize=7, parse_math=False)
    right.set_title("outlines of lungs and nodules", fontsize=9)
    for axes in (left, middle, right):
        axes.axis("off")
    z, spacing = sample["slice_z_mm"], sample["pixel_spacing_mm"]
    figure.suptitle(
        f"{sample['patient_id']}, slice {sample['slice_index']}, z = {z:g} mm, {spacing:.3f} mm a pixel",
        fontsize=10,
        parse_math=False,
    )


def _show_lung_window(axes: Axes, hu: np.ndarray) -> None:
    centre, width = window_limits("lung")
    axes.imshow(hu, cmap="gray", vmin=centre - width / 2, vmax=centre + width / 2)


def draw_ratings(figure: Figure | SubFigure, nodules: list[list[dict[str, Any]]], title: str) -> None:
    """The legend of the maps and, where nodules are rated, a histogram of each feature."""
    rated = {}
    for entries in nodules:
        rated.update({nodule["nodule_id"]: nodule for nodule in entries if nodule["malignancy"] is not None})
    features = NODULE_FEATURES if rated else ()
    *histograms, legend = figure.subplots(1, len(features) + 1, squeeze=False)[0]
    for axes, name in zip(histograms, features, strict=True):
        counts = np.bincount([int(nodule[name]) for nodule in rated.values()], minlength=HIGHEST_RATING + 1)
        axes.bar(RATINGS, counts[LOWEST_RATING:], color="slategray")
        axes.set_title(f"{name}, {len(rated)} nodules", fontsize=9)
        axes.set_xticks(RATINGS)
    legend.axis("off")
    patches = [
        Patch(facecolor=PALETTE[label] / 255, edgecolor="grey", label=f"{label} {name}")
        for label, name in enumerate(LABEL_NAMES)
    ]
    legend.legend(handles=patches, fontsize=8, loc="center", title=title, title_fontsize=9)
