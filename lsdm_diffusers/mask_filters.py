"""Filters and components of masks and slices, as the segmentation needs them."""

import cv2
import numpy as np
from numpy.typing import NDArray

# `morphology` imports scikit-image: that takes a second, which a reader of maps need not wait.

Mask = NDArray[np.bool_]


def morphology(operation: int, mask: Mask, radius_mm: float, pixel_spacing: float) -> Mask:
    """Apply a morphological operation with a disk; the outside of the image has no effect.

    Args:
        operation: `cv2.MORPH_ERODE`, `_DILATE`, `_OPEN` or `_CLOSE`.
        mask: boolean mask (H, W).
        radius_mm: of the disk; at least one pixel.
        pixel_spacing: edge of a pixel, in mm.

    Returns:
        Boolean mask (H, W).
    """
    from skimage.morphology import disk

    radius = max(1, round(radius_mm / pixel_spacing))
    return cv2.morphologyEx(mask.astype(np.uint8), operation, disk(radius)).astype(bool)


def components(mask: Mask, connectivity: int = 8) -> NDArray[np.int32]:
    """Connected components (H, W) of a mask: 0 outside it, 1 and up inside.

    Args:
        mask: boolean mask (H, W).
        connectivity: 8 where pixels that share a corner are connected, or 4.
    """
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
    return np.asarray(labels, dtype=np.int32)


def depth_in_mm(mask: Mask, pixel_spacing: float) -> NDArray[np.float32]:
    """Distance of each pixel of a mask (H, W) to the nearest pixel outside it, in mm; 0 outside.

    The outside of the image does not count as outside the mask.

    Args:
        mask: boolean mask (H, W).
        pixel_spacing: edge of a pixel, in mm.
    """
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.asarray(distance * pixel_spacing, dtype=np.float32)


def gaussian(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Smooth by a Gaussian, cut at four sigma; the border pixels are repeated outside the image.

    Args:
        image: (H, W).
        sigma: in pixels.
    """
    edge = 2 * round(4 * sigma) + 1
    blurred = cv2.GaussianBlur(image, (edge, edge), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, dtype=np.float32)
