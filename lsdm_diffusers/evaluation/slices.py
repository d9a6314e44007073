"""The slices of a dataset that an evaluation draws and compares, with their maps and the ratings of their nodules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.dataset import decode_image, row_kinds
from ..hounsfield import scaled_hu
from ..semantic_map import Nodule, find_nodules

RatingEntry = dict[str, Any]  # one entry of a dataset's column `nodules`


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class EvaluationSlice:
    """A real slice, its map and the ratings of its nodules.

    Args:
        number: of the slice among those with nodules of its split; it fixes the noise that its map is sampled from.
        hu: the real slice, (H, W), float32.
        semantic_map: labels 0..7, (H, W), uint8.
        entries: the row's column `nodules`: centroid, ratings and, in a recipe's dataset, the patient of each nodule.
        patient_id: of the slice.
        pixel_spacing: edge of a pixel in mm.
    """

    number: int
    hu: np.ndarray
    semantic_map: np.ndarray
    entries: list[RatingEntry]
    patient_id: str
    pixel_spacing: float

    @cached_property
    def nodules(self) -> list[Nodule]:
        """The nodules of the map, in the order of `find_nodules`."""
        return find_nodules(self.semantic_map)

    def true_ratings(self, features: Sequence[str]) -> list[dict[str, float]]:
        """The entry of `nodule_features` that asks each nodule of the map for its own ratings.

        Args:
            features: the features to ask for; a nodule without a rating of one is not asked for it.
        """
        entries = [nearest_entry(self.entries, nodule.centroid_yx) for nodule in self.nodules]
        return [{name: entry[name] for name in features if entry[name]} for entry in entries]


def nearest_entry(entries: Sequence[RatingEntry], centroid_yx: tuple[float, float]) -> RatingEntry:
    """The entry of column `nodules` whose centroid is nearest to a point, in pixels."""
    return min(entries, key=lambda entry: np.hypot(*np.subtract(entry["centroid_yx"], centroid_yx)))


def read_slice(row: Mapping[str, Any], number: int) -> EvaluationSlice:
    """The slice of a row of the dataset."""
    return EvaluationSlice(
        number=number,
        hu=decode_image(row["image"]),
        semantic_map=np.asarray(row["semantic_map"]),
        entries=row["nodules"],
        patient_id=row["patient_id"],
        pixel_spacing=row["pixel_spacing_mm"],
    )


def rows_of_slices(split: Dataset) -> Dataset:
    """The rows of a split that are slices and list nodules; a recipe's nodule crops are left out."""
    lists_nodules = np.array([bool(entries) for entries in split["nodules"]], dtype=bool)
    return split.select(np.flatnonzero((row_kinds(split) != "nodule") & lists_nodules))


def slices_with_nodules(split: Dataset, max_slices: int | None = None) -> list[EvaluationSlice]:
    """The slices of a split that list nodules, in the order of the split.

    Args:
        split: of a dataset.
        max_slices: at most this many, evenly spread over the split; None for all.
    """
    rows = rows_of_slices(split)
    return [read_slice(rows[index], index) for index in evenly_spread(len(rows), max_slices)]


def yardstick_slices(
    splits: Mapping[str, Dataset], split: str, max_slices: int | None = None
) -> list[EvaluationSlice]:
    """The slices of other patients whose distance to those of an evaluated split is the yardstick.

    Args:
        splits: of the dataset.
        split: the evaluated one.
        max_slices: at most this many, evenly spread over the other split; None for all.

    Returns:
        Slices of the split "train", or of "validation" where "train" itself is evaluated; an empty list if the
        dataset lacks that split, or if the split lists no nodules.
    """
    name = "validation" if split == "train" else "train"
    return slices_with_nodules(splits[name], max_slices) if name in splits else []


def evenly_spread(length: int, limit: int | None = None) -> list[int]:
    """At most `limit` indices, evenly spread over 0..length - 1; all of them without a limit."""
    count = length if limit is None else min(length, limit)
    return [int(index) for index in np.linspace(0, length - 1, count)]


def pixels_from_hu(images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """Slices (H, W) in HU as models and metrics take them: (N, 1, H, W), float32, in [-1, 1]."""
    return torch.from_numpy(scaled_hu(np.asarray(images, dtype=np.float32)))[:, None]
