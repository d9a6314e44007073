"""Batches of encoded rows for the U-Net: crops of slices, windows around nodules, and what is dropped of a map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..labels import SemanticLabel
from ..nodule_features import NODULE_FEATURES
from .data import NODULE_CROP_SHARE, crop_corner
from .encoded_rows import RATING_UNIT, EncodedRow, RowPool

# latents and map_latents (B, c, h, w), float32; labels (B, h, w), int64; ratings (B, 4, h, w), float32, 1..5 or 0;
# where rows are encoded with it, neutral_map_latents as map_latents
Batch = dict[str, torch.Tensor]

ONE_RATING_DROPOUT = 0.2  # of the samples lose this rating, each feature by itself
ALL_RATINGS_DROPOUT = 0.1  # of the samples lose all of them


@dataclass(frozen=True)
class BatchPlan:
    """How batches are drawn.

    Args:
        crop_edge: edge of the square crops of slices, in latents.
        batch_size: crops of a batch; smaller ones fill the same number of pixels.
        nodule_probability: share of the batches that are crops around nodules, of the pool "nodules".
        window_probability: share of the batches that are windows of slices with a nodule in them.
        window_edge: edge of these windows, in latents.
        balance_patients: draw patients alike, and then one of their rows; off draws rows alike.
        seed: of the run.
    """

    crop_edge: int
    batch_size: int
    nodule_probability: float = 0.0
    window_probability: float = 0.0
    window_edge: int = 32
    balance_patients: bool = True
    seed: int = 0

    def draw(self, pools: Mapping[str, RowPool], batch_number: int) -> Batch:
        """Draw crops. They depend on seed and batch number only, so that a resumed run sees the same data."""
        generator = np.random.default_rng((self.seed, batch_number))
        draw = generator.random()
        name, edge, with_nodule = "slices", self.crop_edge, False
        if "nodules" in pools and ("slices" not in pools or draw < self.nodule_probability):
            name = "nodules"
        elif self.nodule_probability <= draw < self.nodule_probability + self.window_probability:
            edge, with_nodule = self.window_edge, bool(pools["slices"].nodule_patients)
        pool = pools[name]
        edge = min(edge, *pool.shape)
        count = self.batch_size * max(1, (self.crop_edge // edge) ** 2)
        patients, nodule_share = pool.patients, NODULE_CROP_SHARE
        if with_nodule:
            patients, nodule_share = pool.nodule_patients, 1.0
        if not self.balance_patients:
            patients = [np.concatenate(patients)]
        crops = []
        for _ in range(count):
            rows = patients[generator.integers(len(patients))]
            row = pool[int(rows[generator.integers(len(rows))])]
            y, x = crop_corner(row["labels"].numpy(), edge, generator, nodule_share)
            crops.append({part: t[..., y : y + edge, x : x + edge] if t.ndim else t for part, t in row.items()})
        return stack_rows(crops)


def stack_rows(rows: Sequence[EncodedRow]) -> Batch:
    """Stack encoded rows to a batch with the dtypes that the U-Net takes."""
    parts = [part for part in rows[0] if part != "patient"]
    batch = {part: torch.stack([row[part] for row in rows]) for part in parts}
    batch = {part: tensor.long() if part == "labels" else tensor.float() for part, tensor in batch.items()}
    batch["ratings"] /= RATING_UNIT
    return batch


def drop_labels(batch: Batch, share: float, generator: np.random.Generator) -> None:
    """Drop the map of a share of the samples, in place: half of them lose the whole map, half of them one label.

    What is dropped becomes background for SPADE and 0 in the latents of the map.
    """
    for labels, map_latents in zip(batch["labels"], batch["map_latents"], strict=True):
        if generator.random() >= share:
            continue
        if generator.random() < 0.5:
            dropped = torch.ones_like(labels, dtype=torch.bool)
        else:
            dropped = labels == generator.choice(labels.unique().numpy())
        labels[dropped] = SemanticLabel.BACKGROUND
        map_latents[:, dropped] = 0


def drop_ratings(batch: Batch, generator: np.random.Generator) -> None:
    """Drop ratings of samples, in place: each with 0.2, all with 0.1, so that any group of them can guide.

    Where that of malignancy is dropped, the map does not tell it either: its nodules get the label of malignancy 3.
    """
    malignancy = NODULE_FEATURES.index("malignancy")
    for sample in range(len(batch["labels"])):
        dropped = generator.random(len(NODULE_FEATURES)) < ONE_RATING_DROPOUT
        dropped |= generator.random() < ALL_RATINGS_DROPOUT
        batch["ratings"][sample, torch.from_numpy(dropped)] = 0
        if dropped[malignancy]:
            labels = batch["labels"][sample]
            labels[labels >= SemanticLabel.NODULE_BENIGN] = SemanticLabel.NODULE_INDETERMINATE
            batch["map_latents"][sample] = batch["neutral_map_latents"][sample]
