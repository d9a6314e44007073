"""Windows of slices around rated nodules: cheap to sample, and all that a figure of a nodule shows."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..data.dataset import decode_image, row_kinds, rows_with_nodules
from ..nodule_crop import CROP
from ..semantic_map import find_nodules
from .images import make_missing, read_hu, sample_hu


def centred_window(shape: tuple[int, int], centre_yx: tuple[float, float], edge: int) -> tuple[slice, slice]:
    """Slices of a window around a point, moved inside the frame."""
    return tuple(
        slice(start, start + edge)
        for start in (int(min(max(c - edge / 2, 0), n - edge)) for c, n in zip(centre_yx, shape, strict=True))
    )


def rated(row: dict, nodule) -> dict:
    """The entry of column `nodules` whose centroid is nearest to a nodule of the row's map."""
    return min(row["nodules"], key=lambda entry: np.hypot(*np.subtract(entry["centroid_yx"], nodule.centroid_yx)))


def rated_features(row: dict, features: list[str]) -> list[dict[str, float]]:
    """The entry of `nodule_features` for a row's map: every nodule's true ratings of some features, where it has them."""
    entries = [rated(row, nodule) for nodule in find_nodules(np.asarray(row["semantic_map"]))]
    return [{feature: entry[feature] for feature in features if entry[feature]} for entry in entries]


@dataclass
class NoduleWindow:
    """A nodule, its surroundings and its ratings.

    Args:
        name: of the row and the nodule, the same in every run on a dataset.
        hu: the real slice, (edge, edge), float32.
        semantic_map: labels, (edge, edge), uint8.
        index: of the nodule in `find_nodules(semantic_map)`.
        centre_yx: its centroid in the window, pixels.
        ratings: its entry of column `nodules`.
        patient_id: of the nodule's patient.
        pixel_spacing: mm.
    """

    name: str
    hu: np.ndarray
    semantic_map: np.ndarray
    index: int
    centre_yx: tuple[float, float]
    ratings: dict
    patient_id: str
    pixel_spacing: float

    def features(self, features: dict | None) -> list[dict]:
        """The entry of `nodule_features` for this map that asks for features of this nodule alone."""
        return [
            dict(features or {}) if index == self.index else {}
            for index in range(len(find_nodules(self.semantic_map)))
        ]

    def mask(self) -> np.ndarray:
        """Where the map draws the nodule, boolean (edge, edge)."""
        return find_nodules(self.semantic_map)[self.index].mask(self.semantic_map.shape)

    def crop(self, image: np.ndarray, edge: int = CROP) -> np.ndarray:
        """The `edge` pixels around the nodule, of an image of the window's size."""
        return image[centred_window(image.shape[:2], self.centre_yx, edge)]


def nodule_windows(split: Dataset, edge: int) -> Iterator[NoduleWindow]:
    """A window of `edge` pixels around every nodule of the split.

    Up to `CROP` pixels they are cut from the rows of kind "nodule" where a dataset has them; larger ones from its slices. Slices smaller
    than the window, and nodules that the map does not show, are passed over.
    """
    if edge <= CROP:
        rows = rows_with_nodules(split)
    else:
        listed = np.array([bool(nodules) for nodules in split["nodules"]])
        rows = split.select(np.flatnonzero((row_kinds(split) != "nodule") & listed))
    for number, row in enumerate(rows):
        labels = np.asarray(row["semantic_map"])
        if min(labels.shape) < edge:
            continue
        hu = decode_image(row["image"])
        for at, entry in enumerate(row["nodules"]):
            window = centred_window(labels.shape, entry["centroid_yx"], edge)
            semantic_map = np.ascontiguousarray(labels[window])
            centre = tuple(float(c - part.start) for c, part in zip(entry["centroid_yx"], window, strict=True))
            far = [np.hypot(*np.subtract(nodule.centroid_yx, centre)) for nodule in find_nodules(semantic_map)]
            if far:
                patient = entry.get("patient_id") or row["patient_id"]
                name = f"{number}-{at}"
                yield NoduleWindow(
                    name,
                    hu[window],
                    semantic_map,
                    int(np.argmin(far)),
                    centre,
                    entry,
                    patient,
                    row["pixel_spacing_mm"],
                )


def sample_windows(
    accelerator,
    pipe,
    windows: list[NoduleWindow],
    folder: Path,
    features: Callable | None = None,
    seed: int = 0,
    batch_size: int = 1,
    **sampling,
) -> list[np.ndarray]:
    """A slice of each window in HU, (edge, edge), float32: made where `folder` has none yet, and kept there.

    Args:
        accelerator: its processes share the work.
        pipe: a pipeline of this package.
        windows: of one edge.
        folder: of these images; its name must tell all that `features` and `sampling` change.
        features: window to the features that its nodule is guided by; None for no guidance.
        seed: of the noise; with the window's name it fixes the noise, whatever else is asked for.
        batch_size: windows that are sampled together.
        **sampling: arguments of the pipeline's call, where it takes them.
    """
    files = [Path(folder) / f"seed-{seed}" / f"{window.name}.png" for window in windows]

    def make(told):
        seeds = [zlib.crc32(f"{window.name} {seed}".encode()) for window in told]
        wanted = [window.features(features(window)) for window in told] if features else None
        return sample_hu(pipe, [window.semantic_map for window in told], seeds, nodule_features=wanted, **sampling)

    make_missing(
        accelerator, dict(zip(files, windows, strict=True)), make, f"{Path(folder).name}, seed {seed}", batch_size
    )
    return [read_hu(file) for file in files]
