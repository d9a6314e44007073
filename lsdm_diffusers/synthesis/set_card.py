"""The card (README.md) and the picture of samples of a set."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo
from huggingface_hub import DatasetCard, DatasetCardData
from matplotlib.figure import Figure

from ..data.dataset import decode_image
from ..data.dataset_card import SIZE_CATEGORIES
from ..hounsfield import WINDOWS
from ..io.atomic_write import part_file, write_atomically
from ..labels import PALETTE
from ..version import __version__
from .job import Job, ShardResult
from .rows import SET_FEATURES

SAMPLES = 6
TEMPLATE = """---
{{ card_data }}
---

# Synthetic lung CT slices

{{ rows }} slices with semantic maps and nodules, made by `lsdm-synthesize` of lsdm_diffusers {{ version }}.
**All slices are synthetic: no patient was imaged. Not for clinical use.**

![samples](samples.png)

| | |
|---|---|
| maps | {{ maps }} |
| weights | {{ checkpoint }} |
| slices with a nodule that is not seen | {{ missed }} |
| slices left out (`failed.csv`) | {{ failed }} |

## Recipe

```yaml
{{ recipe }}```

## Columns

Those of a prepared dataset of lsdm_diffusers: `image` (16-bit PNG of HU + 1024), `semantic_map` (labels 0 background,
1 body, 2 soft tissue, 3 high density, 4 lung, 5 / 6 / 7 nodule benign / indeterminate / malignant), `patient_id` (of
the map), `pixel_spacing_mm`, `nodules` (place, size, and the ratings that were asked for). Besides: `row`, `source`
(name of the map), `arm` ("guided" or "unguided"), `seed`, `grain`, `missed_nodules`, `synthetic`.

Ratings are what was asked for, not what a reader saw. Sizes and ratings of new nodules are drawn from those of
LIDC-IDRI's training patients (CC BY 3.0, doi:10.7937/K9/TCIA.2015.LO9QL9SX).
"""


def write_card(job: Job, results: Sequence[ShardResult], maps_name: str) -> None:
    """Write README.md into the folder of a set."""
    import yaml

    recipe = {name: value for name, value in job.checked_recipe.as_dict().items() if value is not None}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in recipe.items()}
    rows = sum(result.rows for result in results)
    splits = sorted({job.checked_recipe.split_of(result.shard) for result in results if result.rows})
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    card = DatasetCard.from_template(
        DatasetCardData(
            license="other",
            pretty_name="Synthetic lung CT slices",
            size_categories=[next((name for limit, name in SIZE_CATEGORIES if rows < limit), "n>1M")],
            task_categories=["image-to-image"],
            tags=["medical", "ct", "lung", "synthetic"],
            configs=[{"config_name": "default", "data_files": files}],
        ),
        template_str=TEMPLATE,
        rows=rows,
        version=__version__,
        maps=maps_name,
        checkpoint=Path(job.checkpoint).name if Path(job.checkpoint).exists() else job.checkpoint,
        missed=sum(result.missed for result in results),
        failed=sum(len(result.failed) for result in results),
        recipe=yaml.safe_dump(plain, sort_keys=False),
    )
    write_atomically(Path(job.output_dir) / "README.md", (str(card).rstrip() + "\n").encode())


def write_samples(job: Job, shards: Sequence[int]) -> None:
    """Draw random slices of a set, with their maps, as `samples.png`."""
    paths = [path for shard in shards if (path := job.shard_path(shard)).is_file()]
    places = [(path, index) for path in paths for index in range(pq.read_metadata(path).num_rows)]
    if not places:
        return
    drawn = random.Random(job.checked_recipe.seed).sample(places, min(SAMPLES, len(places)))
    level, width = WINDOWS["lung"]
    figure = Figure(figsize=(2.4 * len(drawn), 5), layout="constrained")
    for column, (path, index) in zip(figure.subplots(2, len(drawn), squeeze=False).T, drawn, strict=True):
        row = Dataset(pq.read_table(path), info=DatasetInfo(features=SET_FEATURES))[index]
        labels = np.asarray(row["semantic_map"])
        column[0].imshow(PALETTE[labels])
        column[1].imshow(decode_image(row["image"]), cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
        nodules = [f"{n['diameter_mm']:.0f} mm, m {n['malignancy']:g}" for n in row["nodules"] if n["malignancy"]]
        column[0].set_title(f"row {row['row']}: " + ("; ".join(nodules) or "no new nodule"), fontsize=7)
        for axis in column:
            axis.axis("off")
    with part_file(Path(job.output_dir) / "samples.png") as part:
        figure.savefig(part, dpi=80, format="png")
