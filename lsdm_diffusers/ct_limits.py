"""What a slice of chest CT can be: the edge of its pixels, and the Hounsfield units (HU) that scanners store."""

import numpy as np

PIXEL_SPACING_MM = (0.1, 5.0)  # edge of a pixel; finer than any scanner's, and too coarse to show a nodule
DEFAULT_PIXEL_SPACING = 0.7  # mm; 512 pixels over a usual field of view of 360 mm
MAX_STORED_HU = 3071  # the highest value of 12 bits at the usual intercept of -1024
AIR_HU, TISSUE_HU = -500, -200  # a chest slice has values below the first (lung) and above the second (tissue)


def is_chest_hu(values: np.ndarray) -> bool:
    """Whether values can be the HU of a slice through the chest: it has air and tissue.

    Grey values, windowed pictures and maps are not.

    Args:
        values: HU of the slice without padding, of any shape.
    """
    return values.size > 0 and bool(values.min() <= AIR_HU and values.max() >= TISSUE_HU)


def check_pixel_spacing(pixel_spacing: float) -> None:
    """Check the edge of a pixel.

    Args:
        pixel_spacing: in mm.

    Raises:
        ValueError: for a value outside 0.1..5.
    """
    low, high = PIXEL_SPACING_MM
    if not low <= pixel_spacing <= high:
        raise ValueError(
            f"`pixel_spacing` is {pixel_spacing}, but the edge of a pixel of chest CT is {low:g}..{high:g} mm."
        )
