"""What a slice of chest CT can be: the edge of its pixels, and the Hounsfield units (HU) that scanners store."""

PIXEL_SPACING_MM = (0.1, 5.0)  # edge of a pixel; finer than any scanner's, and too coarse to show a nodule
DEFAULT_PIXEL_SPACING = 0.7  # mm; 512 pixels over a usual field of view of 360 mm
MAX_STORED_HU = 3071  # the highest value of 12 bits at the usual intercept of -1024


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
