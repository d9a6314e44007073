"""Measurements of a nodule that no classifier's gradient was taken of: size, density, shape and margin; and where guidance changed a slice."""

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt
from skimage.measure import label, perimeter_crofton, regionprops
from skimage.morphology import disk

TISSUE = -400  # HU above which a pixel counts to the nodule, halfway from lung to tissue
RINGS = (0, 2, 4, 8, 16, 32)  # upper bounds of the distance from the nodule, pixels
RING_NAMES = ("inside", "1-2", "3-4", "5-8", "9-16", "17-32", "> 32")
MEASURES = ("area_mm2", "mean_hu", "spread_hu", "circularity", "solidity", "margin_hu_per_mm")


def nodule_tissue(hu: np.ndarray, drawn: np.ndarray, reach: int = 6) -> np.ndarray:
    """Boolean mask (H, W) of the tissue (HU above -400) within `reach` pixels of the drawn nodule."""
    return binary_dilation(drawn, disk(reach)) & (hu > TISSUE)


def nodule_measures(hu: np.ndarray, drawn: np.ndarray, spacing: float) -> dict[str, float]:
    """Measure a nodule in a crop.

    Args:
        hu: (H, W) in Hounsfield units.
        drawn: boolean mask (H, W) of the nodule as the map draws it.
        spacing: edge of a pixel in mm.

    Returns:
        `area_mm2` of the tissue within 6 pixels of the drawn nodule; `mean_hu` and `spread_hu` (standard deviation) inside the drawn
        nodule; and of the largest piece of that tissue `circularity` (4π area / perimeter², 1 for a disc), `solidity` (area over that
        of the convex hull) and `margin_hu_per_mm`, the mean gradient on the pixels along its edge. These three are NaN where there is
        no tissue.

    Raises:
        ValueError: for an empty `drawn`, or shapes that differ.
    """
    if hu.shape != drawn.shape or not drawn.any():
        raise ValueError(
            f"`drawn` has the shape {drawn.shape} and {int(drawn.sum())} pixels, but a nodule in the shape of `hu`, {hu.shape}, is needed."
        )
    hu = hu.astype(np.float64)
    tissue = nodule_tissue(hu, drawn)
    measures = {
        "area_mm2": float(tissue.sum() * spacing**2),
        "mean_hu": float(hu[drawn].mean()),
        "spread_hu": float(hu[drawn].std()),
    }
    measures |= dict.fromkeys(MEASURES[3:], float("nan"))
    if tissue.any():
        pieces = label(tissue, connectivity=1)
        region = max(regionprops(pieces), key=lambda piece: piece.area)
        piece = np.pad(pieces == region.label, 1)
        edge = (piece & ~binary_erosion(piece)) | (binary_dilation(piece) & ~piece)
        steepness = np.hypot(*np.gradient(np.pad(hu, 1, mode="edge"), spacing))
        measures["circularity"] = float(4 * np.pi * region.area / perimeter_crofton(piece, 4) ** 2)
        measures["solidity"] = float(region.solidity)
        measures["margin_hu_per_mm"] = float(steepness[edge].mean())
    return measures


def change_by_distance(change: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean |change| in each of the seven rings `RING_NAMES` around the drawn nodule, (7,); NaN where a ring has no pixel.

    Args:
        change: (H, W), guided minus unguided, HU.
        drawn: boolean mask (H, W).
    """
    ring = np.digitize(distance_transform_edt(~drawn), RINGS, right=True).ravel()
    counts = np.bincount(ring, minlength=len(RING_NAMES))
    sums = np.bincount(ring, np.abs(change).ravel(), minlength=len(RING_NAMES))
    return np.divide(sums, counts, out=np.full(len(RING_NAMES), np.nan), where=counts > 0)


def seam_energy(change: np.ndarray, box: tuple[int, int, int, int], depth: int = 3) -> tuple[float, float]:
    """Mean squared step of `change` across the edge of a box, and between the lines just inside it: equal where the box leaves no seam.

    Args:
        change: (H, W), guided minus unguided, HU.
        box: (y0, x0, y1, x1), half-open; a side at the border of the image has no line beyond and is left out.
        depth: steps inside of each side.
    """
    y0, x0, y1, x1 = box
    across, inside = [], []
    for image, (low, high), (first, last) in ((change, (y0, y1), (x0, x1)), (change.T, (x0, x1), (y0, y1))):
        steps = (
            np.diff(image[:, first:last].astype(np.float64), axis=0) ** 2
        )  # step k lies between the lines k and k + 1
        if low > 0:
            across.append(steps[low - 1])
            inside.append(steps[low : low + depth].ravel())
        if high < image.shape[0]:
            across.append(steps[high - 1])
            inside.append(steps[high - 1 - depth : high - 1].ravel())
    if not across:
        return float("nan"), float("nan")
    return float(np.concatenate(across).mean()), float(np.concatenate(inside).mean())
