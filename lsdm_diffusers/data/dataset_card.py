"""The card (README.md) of a prepared dataset, filled from what was made."""

import importlib.resources
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..io.atomic_write import write_atomically
from ..nodule_features import NODULE_FEATURES
from .dataset import SPLITS
from .scan import ScanRecord

IMAGE_ENCODINGS = {  # by bit depth
    16: "16-bit PNG of HU + 1024, HU clipped to [-1024, 800]: without loss.",
    8: "8-bit PNG: HU clipped to [-1024, 800] and scaled to 0..255.",
}
SIZE_CATEGORIES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset_card(
    output_dir: Path,
    records: Sequence[ScanRecord],
    bit_depth: int,
    *,
    pretty_name: str,
    summary: str,
    selection: str,
    licence: str,
    licence_id: str,
    tags: Sequence[str],
    command: str,
) -> None:
    """Write README.md into the folder of the dataset.

    Args:
        output_dir: folder of the dataset, its shards in `data/<split>-*.parquet`.
        records: what was made of each scan.
        bit_depth: of the images, 16 or 8.
        pretty_name: title of the card.
        summary: one or two sentences below the title.
        selection: which slices were taken, and how maps and nodules were made.
        licence: of the scans, with what to cite.
        licence_id: the Hub's identifier of the licence.
        tags: of the Hub, beside "medical", "ct" and "lung".
        command: the script that made the dataset.
    """
    splits = []
    for split in SPLITS:
        in_split = [record for record in records if record["split"] == split and record["rows"]]
        if in_split:
            splits.append(_count_split(split, in_split))
    rows = sum(record["rows"] for record in records)
    card_data: dict[str, Any] = {
        "license": licence_id,
        "pretty_name": pretty_name,
        "size_categories": [next((name for limit, name in SIZE_CATEGORIES if rows < limit), "n>1M")],
        "task_categories": ["image-to-image"],
        "tags": ["medical", "ct", "lung", *tags],
    }
    if splits:
        data_files = [{"split": row["split"], "path": f"data/{row['split']}-*.parquet"} for row in splits]
        card_data["configs"] = [{"config_name": "default", "data_files": data_files}]
    ratings = _count_ratings(records)
    card = DatasetCard.from_template(
        DatasetCardData(**card_data),
        template_str=importlib.resources.files(__package__).joinpath("dataset_card.md").read_text(encoding="utf-8"),
        splits=splits,
        ratings=ratings if any(ratings.values()) else None,
        image_encoding=IMAGE_ENCODINGS[bit_depth],
        version=version("lsdm_diffusers"),
        pretty_name=pretty_name,
        summary=summary,
        selection=selection,
        licence=licence,
        command=command,
    )
    write_atomically(output_dir / "README.md", (str(card).rstrip() + "\n").encode())


def _count_split(split: str, records: Sequence[ScanRecord]) -> dict[str, Any]:
    """A row of the card's table of splits."""
    return {
        "split": split,
        "patients": len({record["patient_id"] for record in records}),
        "rows": sum(record["rows"] for record in records),
        "rows_with_nodules": sum(record["rows_with_nodules"] for record in records),
        "nodules": sum(record["nodules"] for record in records),
    }


def _count_ratings(records: Sequence[ScanRecord]) -> dict[str, Counter[str]]:
    """Number of nodules by feature and rating."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in NODULE_FEATURES}
    for record in records:
        for name in NODULE_FEATURES:
            counts[name].update(record["ratings"].get(name, {}))
    return counts
