"""Hounsfield units (HU) as models, image files and viewers see them: the one definition of each scaling, in both directions.

Models see the window [-1024, 800] HU, scaled linearly to [-1, 1] (thesis, section 4.1). Grey values are that window scaled
to 0..255. A 16-bit image holds HU + 1024 without loss.
"""

import numpy as np

HU_MIN, HU_MAX = -1024, 800  # the window that is scaled to [-1, 1]; thesis, section 4.1
HU_RANGE = HU_MAX - HU_MIN
WINDOWS: dict[str, tuple[float, float]] = {  # centre and width in HU, as radiologists set them
    "lung": (-600, 1500),
    "mediastinal": (40, 400),
    "bone": (480, 2500),
}


def scaled_hu(hu):
    """Scale Hounsfield units from [-1024, 800] to [-1, 1], as models see them.

    Args:
        hu: number, array or tensor of any shape, in HU. Values outside the window are not clipped.

    Returns:
        What `hu` is, of the same shape.
    """
    return (hu - HU_MIN) * (2 / HU_RANGE) - 1


def hu_from_scaled(pixels):
    """Scale pixels from [-1, 1] back to Hounsfield units: the inverse of `scaled_hu`.

    Args:
        pixels: number, array or tensor of any shape. Values outside [-1, 1] are not clipped.
    """
    return (pixels + 1) * (HU_RANGE / 2) + HU_MIN


def grey_from_hu(hu) -> np.ndarray:
    """Scale Hounsfield units to 8-bit grey values: [-1024, 800] to 0..255, clipped and rounded.

    Args:
        hu: array of any shape, in HU.

    Returns:
        `uint8` array of the same shape.
    """
    clipped = np.clip(np.asarray(hu, dtype=np.float32), HU_MIN, HU_MAX)
    return np.rint((clipped - HU_MIN) * np.float32(255 / HU_RANGE)).astype(np.uint8)


def hu_from_grey(grey) -> np.ndarray:
    """Scale 8-bit grey values 0..255 back to Hounsfield units; one grey value spans 7.15 HU.

    Args:
        grey: array of any shape.

    Returns:
        `float32` array of the same shape.
    """
    return np.asarray(grey, dtype=np.float32) * np.float32(HU_RANGE / 255) + HU_MIN


def window_limits(window: str | tuple[float, float]) -> tuple[float, float]:
    """Centre and width in HU of a window.

    Args:
        window: "lung", "mediastinal", "bone", or the pair (centre, width) itself.

    Raises:
        ValueError: for another name, or a width of at most 1.
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


def apply_window(hu, window: str | tuple[float, float]) -> np.ndarray:
    """Grey values 0..255 of Hounsfield units as a DICOM viewer shows them (DICOM PS3.3, C.11.2.1.2.1).

    Args:
        hu: array of any shape.
        window: "lung", "mediastinal", "bone", or a pair (centre, width) in HU.

    Returns:
        `uint8` array of the shape of `hu`.
    """
    centre, width = window_limits(window)
    grey = (np.asarray(hu, dtype=np.float32) - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)
