"""The card (README.md) of a prepared dataset, filled from what was made."""

import importlib.resources
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ..io.atomic_write import write_atomically
from ..nodule_features import NODULE_FEATURES
from .dataset import SPLITS

IMAGE_ENCODINGS = {
    16: "16-bit PNG of HU + 1024, HU clipped to [-1024, 800]: without loss.",
    8: "8-bit PNG: HU clipped to [-1024, 800] and scaled to 0..255.",
}
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset_card(output_dir: Path, records: list[dict], bit_depth: int, **text) -> None:
    """Write README.md into the folder of the dataset.

    Args:
        output_dir: folder of the dataset, its shards in `data/<split>-*.parquet`.
        records: what was made, each with patient_id, split, rows, rows_with_nodules, nodules, ratings.
        bit_depth: of the images.
        text: the template's `pretty_name`, `summary`, `selection`, `licence`, `licence_id`, `tags`, `command`.
    """
    rows = sum(record["rows"] for record in records)
    splits, ratings = [], {name: Counter() for name in NODULE_FEATURES}
    for split in SPLITS:
        of_split = [record for record in records if record["split"] == split and record["rows"]]
        if of_split:
            sums = {
                name: sum(record[name] for record in of_split) for name in ("rows", "rows_with_nodules", "nodules")
            }
            splits.append({"split": split, "patients": len({record["patient_id"] for record in of_split}), **sums})
        for record in of_split:
            for name in NODULE_FEATURES:
                ratings[name].update(record["ratings"].get(name, {}))
    data_files = [{"split": row["split"], "path": f"data/{row['split']}-*.parquet"} for row in splits]
    card_data = DatasetCardData(
        license=text["licence_id"],
        pretty_name=text["pretty_name"],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>1M")],
        task_categories=["image-to-image"],
        tags=["medical", "ct", "lung", *text["tags"]],
        **({"configs": [{"config_name": "default", "data_files": data_files}]} if data_files else {}),
    )
    card = DatasetCard.from_template(
        card_data,
        template_str=importlib.resources.files(__package__).joinpath("dataset_card.md").read_text(encoding="utf-8"),
        splits=splits,
        ratings=ratings if any(ratings.values()) else None,
        image_encoding=IMAGE_ENCODINGS[bit_depth],
        version=version("lsdm_diffusers"),
        **text,
    )
    write_atomically(output_dir / "README.md", (str(card).rstrip() + "\n").encode())
