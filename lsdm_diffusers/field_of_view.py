"""The field of view of a CT slice: the pixels that the scanner measured. The others are padding.

Scanners reconstruct a circle and pad its corners; resampling and cropping pad straight edges.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from .hounsfield import HU_MIN
from .mask_filters import Mask, gaussian

PADDING_BELOW_HU = -500.0  # padding is as dark as air; a corner that shows tissue is none
BLURRED_EDGE_PIXELS = 2  # resampling mixes so many pixels at the edge of the field of view with padding
MIN_WEIGHT = 1e-3  # of measured pixels in a smoothed value; below it there is nothing to smooth


def field_of_view(values: NDArray[np.float32]) -> Mask:
    """Mask of the field of view: the convex hull of what is not padding.

    Padding has exactly the value of a corner of the image. Noise makes measured air differ from it, so the hull of an
    unpadded slice is the whole image. The hull gives back measured pixels that have the value of padding.

    Args:
        values: slice in HU, clipped from below, (H, W).

    Returns:
        Boolean mask (H, W); the whole image where all pixels have the values of corners.
    """
    corners = np.unique(values[[0, 0, -1, -1], [0, -1, 0, -1]])
    measured = ~np.isin(values, corners[corners < PADDING_BELOW_HU])
    rows = np.flatnonzero(measured.any(axis=1))
    if not rows.size:
        return np.ones(values.shape, dtype=bool)
    left = measured[rows].argmax(axis=1)
    right = values.shape[1] - 1 - measured[rows, ::-1].argmax(axis=1)
    points = np.stack([np.concatenate([left, right]), np.concatenate([rows, rows])], axis=1).astype(np.int32)
    filled = cv2.fillConvexPoly(np.zeros(values.shape, dtype=np.uint8), cv2.convexHull(points), 1)
    return filled.astype(bool)


def edge_of(view: Mask) -> Mask:
    """The outermost pixels (H, W) of a field of view, those at the border of the image included."""
    square = np.ones((3, 3), dtype=np.uint8)
    inner = cv2.erode(view.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    edge: Mask = view & ~inner.astype(bool)
    return edge


def gaussian_within(values: NDArray[np.float32], view: Mask, sigma: float) -> NDArray[np.float32]:
    """Smooth a slice by a Gaussian of measured pixels alone, so that padding does not darken tissue beside it.

    Args:
        values: slice in HU, (H, W).
        view: its field of view, (H, W).
        sigma: in pixels.

    Returns:
        The smoothed slice (H, W); far from the field of view it is -1024 HU.
    """
    if view.all():
        return gaussian(values, sigma)
    square = np.ones((2 * BLURRED_EDGE_PIXELS + 1,) * 2, dtype=np.uint8)
    weights = cv2.erode(view.astype(np.uint8), square).astype(np.float32)  # the border of the image stays
    total = gaussian(weights, sigma)
    smooth = gaussian(values * weights, sigma) / np.maximum(total, MIN_WEIGHT)
    return np.where(total > MIN_WEIGHT, smooth, np.float32(HU_MIN))
