"""Hounsfield units (HU) as models, image files and viewers see them: the one definition of each scaling, both ways.

Models see the window [-1024, 800] HU, scaled linearly to [-1, 1] (thesis, section 4.1). Grey values are that window,
scaled to 0..255. Viewers show narrower windows, which radiologists set by centre and width.
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

HU_MIN, HU_MAX = -1024, 800  # the window that is scaled to [-1, 1]; thesis, section 4.1
HU_RANGE = HU_MAX - HU_MIN
GREY_MAX = 255  # the brightest 8-bit grey value
WINDOWS: dict[str, tuple[float, float]] = {  # centre and width in HU
    "lung": (-600, 1500),
    "mediastinal": (40, 400),
    "bone": (480, 2500),
}

PixelsT = TypeVar("PixelsT", float, np.ndarray, "torch.Tensor")  # functions return the type that they are given


def scaled_hu(hu: PixelsT) -> PixelsT:
    """Scale Hounsfield units from [-1024, 800] to [-1, 1], as models see them.

    Args:
        hu: number, array or tensor of any shape, in HU. Values outside the window are not clipped.

    Returns:
        Number, array or tensor of the same shape.

    >>> scaled_hu(-1024), scaled_hu(-112), scaled_hu(800)
    (-1.0, 0.0, 1.0)
    """
    return (hu - HU_MIN) * (2 / HU_RANGE) - 1


def hu_from_scaled(pixels: PixelsT) -> PixelsT:
    """Scale pixels from [-1, 1] back to Hounsfield units: the inverse of `scaled_hu`.

    Args:
        pixels: number, array or tensor of any shape. Values outside [-1, 1] are not clipped.

    Returns:
        Number, array or tensor of the same shape, in HU.

    >>> hu_from_scaled(0.0)
    -112.0
    """
    return (pixels + 1) * (HU_RANGE / 2) + HU_MIN


def grey_from_hu(hu: ArrayLike) -> NDArray[np.uint8]:
    """Scale Hounsfield units to 8-bit grey values: [-1024, 800] to 0..255, clipped and rounded.

    Args:
        hu: array of any shape, in HU.

    Returns:
        `uint8` array of the same shape.

    >>> grey_from_hu([-3000, -1024, 800, 3000]).tolist()
    [0, 0, 255, 255]
    """
    clipped = np.clip(np.asarray(hu, dtype=np.float32), HU_MIN, HU_MAX)
    grey: NDArray[np.uint8] = np.rint((clipped - HU_MIN) * np.float32(GREY_MAX / HU_RANGE)).astype(np.uint8)
    return grey


def hu_from_grey(grey: ArrayLike) -> NDArray[np.float32]:
    """Scale 8-bit grey values 0..255 back to Hounsfield units; one grey value spans 7.15 HU.

    Args:
        grey: array of any shape.

    Returns:
        `float32` array of the same shape, in HU.

    >>> hu_from_grey([0, 255]).tolist()
    [-1024.0, 800.0]
    """
    return np.asarray(grey, dtype=np.float32) * np.float32(HU_RANGE / GREY_MAX) + np.float32(HU_MIN)


def window_limits(window: str | tuple[float, float]) -> tuple[float, float]:
    """Centre and width of a window, in HU.

    Args:
        window: "lung", "mediastinal", "bone", or a pair (centre, width) in HU, which is returned after a check.

    Raises:
        ValueError: for another name, a width of at most 1, or a number that is not finite.

    >>> window_limits("lung")
    (-600, 1500)
    """
    if isinstance(window, str):
        if window not in WINDOWS:
            names = ", ".join(map(repr, WINDOWS))
            raise ValueError(f"`window` is {window!r}, but {names} or a pair (centre, width) in HU is needed.")
        return WINDOWS[window]
    centre, width = window
    if not (np.isfinite(centre) and np.isfinite(width) and width > 1):
        raise ValueError(f"`window` is {window}, but a pair (centre, width) in HU with a width above 1 is needed.")
    return float(centre), float(width)


def apply_window(hu: ArrayLike, window: str | tuple[float, float]) -> NDArray[np.uint8]:
    """Grey values 0..255 of Hounsfield units as a DICOM viewer shows them (DICOM PS3.3, C.11.2.1.2.1).

    Args:
        hu: array of any shape, in HU.
        window: "lung", "mediastinal", "bone", or a pair (centre, width) in HU.

    Returns:
        `uint8` array of the same shape.

    Raises:
        ValueError: for a window that `window_limits` refuses.

    >>> apply_window([-160, 40, 240], "mediastinal").tolist()
    [0, 128, 255]
    """
    centre, width = window_limits(window)
    # The standard's linear function: the darkest value is shown up to centre - width / 2, the brightest one from
    # centre - 1 + width / 2.
    brightness = (np.asarray(hu, dtype=np.float32) - (centre - 0.5)) / (width - 1) + 0.5
    grey: NDArray[np.uint8] = np.rint(GREY_MAX * np.clip(brightness, 0, 1)).astype(np.uint8)
    return grey
