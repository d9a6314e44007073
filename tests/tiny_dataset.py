"""A small dataset with the columns of the small recipe's: slices of 96x96 pixels and nodule crops.

python -m tests.tiny_dataset FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from lsdm_diffusers.nodule_features import NODULE_FEATURES

FEATURES = Features(
    {
        "image": Image(),
        "semantic_map": Image(),
        "kind": Value("string"),
        "patient_id": Value("string"),
        "pixel_spacing_mm": Value("float32"),
        "nodules": List(
            {
                "patient_id": Value("string"),
                "centroid_yx": List(Value("float32"), length=2),
                **dict.fromkeys(NODULE_FEATURES, Value("float32")),
            }
        ),
    }
)


def tiny_row(kind: str, rating: int, generator: np.random.Generator) -> dict:
    """A row of kind "nodule", "slice" or "slice_with_nodules" with one nodule whose four ratings are `rating`."""
    size = 64 if kind == "nodule" else 96
    labels = np.full((size, size), 4, np.uint8)
    labels[:8] = 1
    labels[28:36, 28:36] = 5 + 2 * (rating > 3)
    image = np.where(labels >= 5, 900 + 20 * rating, 150) + generator.integers(0, 60, labels.shape)
    nodule = {"patient_id": "p", "centroid_yx": [32.0, 32.0], **dict.fromkeys(NODULE_FEATURES, float(rating))}
    return {
        "image": PILImage.fromarray(image.astype(np.uint16)),
        "semantic_map": PILImage.fromarray(labels),
        "kind": kind,
        "patient_id": "p",
        "pixel_spacing_mm": 0.7,
        "nodules": [nodule],
    }


def write_tiny_dataset(folder: Path) -> None:
    """Write the splits "train" and "validation", ten nodule crops and two slices each, as parquet files."""
    generator = np.random.default_rng(0)
    rows = [tiny_row("nodule", rating, generator) for rating in (1, 2, 3, 4, 5) * 2]
    rows += [tiny_row("slice", 2, generator), tiny_row("slice_with_nodules", 5, generator)]
    split = Dataset.from_list(rows, features=FEATURES)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, part in DatasetDict({"train": split, "validation": split}).items():
        part.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")


if __name__ == "__main__":
    write_tiny_dataset(Path(sys.argv[1]))
