"""The card (README.md) of a dataset made from collections of The Cancer Imaging Archive (TCIA)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import DatasetCardData

from ..io.atomic_write import write_atomically
from .tcia import COLLECTIONS, Collection

TEXT = """---
{header}
---

# Lung CT slices, maps and rated nodules

{rows} rows from public collections of The Cancer Imaging Archive (TCIA), made by
`training/recipes/lung-ct-small/prepare_dataset.py`. Columns: `image` (16-bit PNG of HU + 1024), `semantic_map` (labels
0..7), `kind` (slice, slice_with_nodules or nodule), `patient_id`, `pixel_spacing_mm`, `nodules` with their ratings.
The split is by patient; `splits.json` lists the patients.

| collection | licence | reference | training patients | validation patients | images |
|---|---|---|---|---|---|
{table}

Images of LIDC-IDRI are whole slices and crops around rated nodules. Cite the collections and TCIA: Clark et al. 2013,
doi:10.1007/s10278-013-9622-7. Do not try to identify participants.
"""


def write_tcia_card(
    output_dir: Path, images: Sequence[tuple[str, str]], splits: Mapping[str, Sequence[str]], rows: int
) -> None:
    """Write README.md into the folder of the dataset.

    Args:
        output_dir: folder of the dataset.
        images: folder of the collection and patient of each image, without those that are changed copies of others.
        splits: patients of each split, "train" and "validation".
        rows: of the dataset.
    """
    unknown = Collection("", "unknown: to be filled in", "")
    patients: dict[Collection, set[str]] = {}
    counts: Counter[Collection] = Counter()
    for folder, patient in images:
        collection = COLLECTIONS.get(folder, unknown._replace(name=folder))
        patients.setdefault(collection, set()).add(patient)
        counts[collection] += 1
    lines = []
    for collection in sorted(patients):
        in_split = [len(patients[collection] & set(splits[split])) for split in ("train", "validation")]
        cells = [*collection, *map(str, in_split), str(counts[collection])]
        lines.append("| " + " | ".join(cells) + " |")
    header = DatasetCardData(
        license="other",
        license_name="cc-by-3.0-and-4.0",
        pretty_name="Lung CT slices, maps and rated nodules",
        task_categories=["image-to-image"],
        tags=["medical", "ct", "lung"],
    )
    text = TEXT.format(header=header.to_yaml(), rows=rows, table="\n".join(lines))
    write_atomically(output_dir / "README.md", text.encode())
