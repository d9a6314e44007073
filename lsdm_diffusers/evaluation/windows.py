"""Windows of slices around rated nodules: cheap to sample, with all that a figure of a nodule shows."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from diffusers import DiffusionPipeline

from ..data.dataset import rows_with_nodules
from ..nodule_crop import CROP, square_window
from ..semantic_map import Nodule, find_nodules
from .images import make_missing, read_hu, sample_hu
from .slices import EvaluationSlice, RatingEntry, read_slice, rows_of_slices


def centred_window(shape: tuple[int, ...], centre_yx: tuple[float, float], edge: int) -> tuple[slice, slice]:
    """The square window around a point, moved inside the frame at the border, as an index of an array.

    Args:
        shape: (H, W) of the array.
        centre_yx: row and column in pixels.
        edge: of the window in pixels.

    Raises:
        ValueError: for an array smaller than the window.
    """
    height, width = shape
    y0, x0, y1, x1 = square_window(centre_yx, (height, width), edge)
    return slice(y0, y1), slice(x0, x1)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class NoduleWindow:
    """A nodule, its surroundings and its ratings.

    Args:
        name: of the row and the nodule; the same in every run on a dataset.
        hu: the real slice, (edge, edge), float32.
        semantic_map: labels, (edge, edge), uint8.
        nodules: those of the window's map, in the order of `find_nodules`.
        index: of the window's own nodule among them.
        centre_yx: centroid of the nodule in the window, in pixels, as its ratings' entry gives it.
        ratings: the nodule's entry of column `nodules`.
        patient_id: the nodule's patient.
        slice_patient_id: the slice's patient; in a recipe's dataset, nodules are set into slices of other patients.
        pixel_spacing: edge of a pixel in mm.
    """

    name: str
    hu: np.ndarray
    semantic_map: np.ndarray
    nodules: list[Nodule]
    index: int
    centre_yx: tuple[float, float]
    ratings: RatingEntry
    patient_id: str
    slice_patient_id: str
    pixel_spacing: float

    @property
    def nodule(self) -> Nodule:
        """The window's own nodule."""
        return self.nodules[self.index]

    def features(self, features: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """The entry of `nodule_features` for this map that asks for features of the window's own nodule alone."""
        asked: list[dict[str, Any]] = [{} for _ in self.nodules]
        asked[self.index] = dict(features or {})
        return asked

    def mask(self) -> np.ndarray:
        """Where the map draws the nodule, boolean (edge, edge)."""
        height, width = self.semantic_map.shape
        return self.nodule.mask((height, width))

    def crop(self, image: np.ndarray, edge: int = CROP) -> np.ndarray:
        """The `edge` pixels around the nodule, of an image of the window's size."""
        return image[centred_window(image.shape[:2], self.centre_yx, edge)]


def cut_window(
    whole: EvaluationSlice, centre_yx: tuple[float, float], ratings: RatingEntry, edge: int, name: str
) -> NoduleWindow | None:
    """Cut the window around a nodule out of its slice.

    Args:
        whole: the slice.
        centre_yx: centroid of the nodule in the slice, in pixels.
        ratings: its entry of column `nodules`.
        edge: of the window in pixels.
        name: of the window.

    Returns:
        The window; None where the map shows no nodule there.

    Raises:
        ValueError: for a slice smaller than the window.
    """
    window = centred_window(whole.semantic_map.shape, centre_yx, edge)
    semantic_map = np.ascontiguousarray(whole.semantic_map[window])
    nodules = find_nodules(semantic_map)
    if not nodules:
        return None
    centre = (float(centre_yx[0] - window[0].start), float(centre_yx[1] - window[1].start))
    distances = [np.hypot(*np.subtract(nodule.centroid_yx, centre)) for nodule in nodules]
    return NoduleWindow(
        name=name,
        hu=whole.hu[window],
        semantic_map=semantic_map,
        nodules=nodules,
        index=int(np.argmin(distances)),
        centre_yx=centre,
        ratings=ratings,
        patient_id=ratings.get("patient_id") or whole.patient_id,
        slice_patient_id=whole.patient_id,
        pixel_spacing=whole.pixel_spacing,
    )


def nodule_windows(split: Dataset, edge: int) -> Iterator[NoduleWindow]:
    """A window of `edge` pixels around each nodule of the split.

    Windows of up to `CROP` pixels are cut from the rows of kind "nodule" where a dataset has them; larger ones, from
    its slices. Slices smaller than the window, and nodules that the map does not show, are left out.
    """
    rows = rows_with_nodules(split) if edge <= CROP else rows_of_slices(split)
    for number, row in enumerate(rows):
        whole = read_slice(row, number)
        if min(whole.semantic_map.shape) < edge:
            continue
        for entry_number, entry in enumerate(whole.entries):
            window = cut_window(whole, entry["centroid_yx"], entry, edge, f"{number}-{entry_number}")
            if window is not None:
                yield window


def window_file(folder: Path, window: NoduleWindow, seed: int) -> Path:
    """The file that keeps the sample of a window, for one seed of the run."""
    return folder / f"seed-{seed}" / f"{window.name}.png"


def window_seed(window: NoduleWindow, seed: int) -> int:
    """The seed of a window's noise: the run's seed and the window's name fix it, whatever the nodule is asked for."""
    return zlib.crc32(f"{window.name} {seed}".encode())


def sample_windows(
    accelerator: Accelerator,
    pipe: DiffusionPipeline,
    windows: Sequence[NoduleWindow],
    folder: Path,
    features: Callable[[NoduleWindow], Mapping[str, Any]] | None = None,
    seed: int = 0,
    batch_size: int = 1,
    **call_arguments: Any,
) -> list[np.ndarray]:
    """Sample a slice of each window, or read it where `folder` keeps it already.

    Args:
        accelerator: its processes share the work.
        pipe: a pipeline of this package.
        windows: of one edge.
        folder: of these images; its name must tell everything that `features` and `call_arguments` change.
        features: gives the features that guide a window's nodule; None for no guidance.
        seed: of the noise, see `window_seed`.
        batch_size: number of windows that are sampled together.
        **call_arguments: arguments of the pipeline's call, where it takes them.

    Returns:
        A slice in HU, (edge, edge), float32, for each window.
    """

    def make_batch(batch: list[NoduleWindow]) -> np.ndarray:
        maps = [window.semantic_map for window in batch]
        seeds = [window_seed(window, seed) for window in batch]
        asked = None if features is None else [window.features(features(window)) for window in batch]
        return sample_hu(pipe, maps, seeds, nodule_features=asked, **call_arguments)

    jobs = {window_file(folder, window, seed): window for window in windows}
    make_missing(accelerator, jobs, make_batch, f"{folder.name}, seed {seed}", batch_size)
    return [read_hu(window_file(folder, window, seed)) for window in windows]
