"""Whether the pixels of a semantic map are about as large as those that the shipped weights were trained on."""

import numpy as np

from ..labels import SemanticLabel

TRAINED_PIXEL_SPACING_MM = (0.5, 1.0)  # edge of a pixel of nearly all chest CT, and of the training data
BODY_WIDTH_MM = (270.0, 450.0)  # of adults, on slices that show the whole body: from narrow to broad
ADVICE = "Resample the map with nearest neighbours, so that a pixel is about 0.7 mm."


def scale_warning(semantic_map: np.ndarray, pixel_spacing: float | None = None) -> str | None:
    """A sentence for people if the pixels of a map are too small or too large for the weights, otherwise None.

    Without a known spacing, the width of the body tells. A body that goes on beyond the left or right edge of the map,
    as in a crop, can be too wide only. A field of view that cuts less than half of its height counts as none.

    Args:
        semantic_map: labels (H, W).
        pixel_spacing: edge of a pixel in mm, or None if it is not known.
    """
    low, high = TRAINED_PIXEL_SPACING_MM
    expected = f"the weights were trained on pixels of {low:g}..{high:g} mm, so the slice may look unreal."
    if pixel_spacing is not None and not low <= pixel_spacing <= high:
        return f"A pixel of the map is {pixel_spacing:g} mm, but {expected} {ADVICE}"
    body = semantic_map != SemanticLabel.BACKGROUND
    columns = np.flatnonzero(body.any(axis=0))
    if not len(columns):
        return None
    width = int(columns[-1] - columns[0]) + 1
    height = int(body.any(axis=1).sum())
    is_whole = body[:, [0, -1]].sum(axis=0).max() < height / 2
    narrowest, widest = BODY_WIDTH_MM[0] / high, BODY_WIDTH_MM[1] / low
    if width > widest or (is_whole and width < narrowest):
        return (
            f"The body of the map is {width} pixels wide, but {narrowest:g}..{widest:g} pixels are plausible: "
            f"{expected} {ADVICE}"
        )
    return None
