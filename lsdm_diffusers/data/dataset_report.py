"""A picture of a prepared dataset: random slices with maps and outlines, and histograms of the ratings."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..io.atomic_write import part_file
from ..labels import LABEL_NAMES, PALETTE, SemanticLabel
from ..nodule_features import NODULE_FEATURES
from .dataset import FEATURES, decode_image


def draw_report(output_dir: Path, num_slices: int = 8, seed: int = 0) -> Path:
    """Draw report.png in the folder of a dataset: half of the slices with nodules, where there are so many.

    Args:
        output_dir: folder of the dataset.
        num_slices: how many slices are drawn.
        seed: which.
    """
    shards = sorted((output_dir / "data").glob("*.parquet"))
    nodules, places = [], []
    for shard in shards:  # the column of nodules alone: the images of all slices would not fit into memory
        column = pq.read_table(shard, columns=["nodules"])["nodules"].to_pylist()
        nodules += column
        places += [(shard, row) for row in range(len(column))]
    rated = {
        nodule["nodule_id"]: nodule for of_slice in nodules for nodule in of_slice if nodule["malignancy"] is not None
    }
    with_nodules = np.array([bool(of_slice) for of_slice in nodules])
    generator = np.random.default_rng(seed)
    shown = generator.permutation(np.flatnonzero(with_nodules))[: num_slices // 2]
    shown = np.concatenate(
        [shown, generator.permutation(np.flatnonzero(~with_nodules))[: num_slices - len(shown)]]
    ).astype(int)

    figure = Figure(figsize=(13, 4.2 * len(shown) + 4), layout="constrained")
    rows = figure.subfigures(len(shown) + 1, 1, height_ratios=[4.2] * len(shown) + [3.6])
    for row, index in zip(np.atleast_1d(rows)[:-1], sorted(shown.tolist()), strict=True):
        shard, row_of_shard = places[index]
        sample = FEATURES.decode_example(pq.read_table(shard).slice(row_of_shard, 1).to_pylist()[0])
        hu, labels = decode_image(sample["image"]), np.asarray(sample["semantic_map"])
        left, middle, right = row.subplots(1, 3)
        left.imshow(hu, cmap="gray", vmin=-1350, vmax=150)
        left.set_title("lung window", fontsize=9)
        middle.imshow(PALETTE[labels])
        middle.set_title("semantic map", fontsize=9)
        right.imshow(hu, cmap="gray", vmin=-1350, vmax=150)
        for level, colour in ((SemanticLabel.LUNG, "deepskyblue"), (SemanticLabel.NODULE_BENIGN, "magenta")):
            if (labels >= level).any():
                right.contour(labels >= level, [0.5], colors=colour, linewidths=0.7)
        for nodule in sample["nodules"]:
            y0, x0, y1, x1 = nodule["box_yxyx"]
            right.annotate(nodule["nodule_id"], (x1 + 2, y0), color="magenta", fontsize=7, parse_math=False)
        right.set_title("outlines of lungs and nodules", fontsize=9)
        for axis in (left, middle, right):
            axis.axis("off")
        z, spacing = sample["slice_z_mm"], sample["pixel_spacing_mm"]
        row.suptitle(
            f"{sample['patient_id']}, slice {sample['slice_index']}, z = {z:g} mm, {spacing:.3f} mm a pixel",
            fontsize=10,
            parse_math=False,
        )
    last = np.atleast_1d(rows)[-1]
    axes = last.subplots(1, len(NODULE_FEATURES) + 1)
    for axis, name in zip(axes, NODULE_FEATURES, strict=False):
        counts = np.bincount([int(nodule[name]) for nodule in rated.values()], minlength=6)[1:]
        axis.bar(range(1, 6), counts, color="slategray")
        axis.set_title(f"{name}, {len(rated)} nodules", fontsize=9)
        axis.set_xticks(range(1, 6))
    axes[-1].axis("off")
    patches = [
        Patch(facecolor=PALETTE[label] / 255, edgecolor="grey", label=f"{label} {name}")
        for label, name in enumerate(LABEL_NAMES)
    ]
    title = f"{len(places)} slices, {int(with_nodules.sum())} with nodules"
    axes[-1].legend(handles=patches, fontsize=8, loc="center", title=title, title_fontsize=9)
    path = output_dir / "report.png"
    with part_file(path) as part:
        figure.savefig(part, dpi=70, format="png")
    return path
