"""Measures of a nodule that no classifier's gradient was taken of: size, density, shape and margin.

Here, too: how far from the nodule guidance changed a slice. `obedience` uses the same reach around a nodule.
"""

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt
from skimage.measure import label, perimeter_crofton, regionprops

# Half-way from lung (-850 HU) to soft tissue (50 HU): the edge of a solid nodule stays there, however blurred it is.
NODULE_TISSUE_HU = -400.0
# Half-way from air (-1000 HU) to water (0 HU): what is denser is no longer lung. It is lower than the edge of a solid
# nodule, so that a faint nodule counts as drawn.
LUNG_LIMIT_HU = -500.0
# How far beyond the drawn outline tissue still counts to the nodule: 6 pixels of 0.7 mm. This holds a nodule that
# came out larger than drawn, and leaves most vessels of the lung out.
REACH_MM = 4.2

RING_LIMITS = (0, 2, 4, 8, 16, 32)  # upper bounds of the distance from the nodule, in pixels
RING_NAMES = ("inside", "1-2", "3-4", "5-8", "9-16", "17-32", "> 32")
MEASURES = ("area_mm2", "mean_hu", "spread_hu", "circularity", "solidity", "margin_hu_per_mm")
SHAPE_MEASURES = ("circularity", "solidity", "margin_hu_per_mm")  # NaN where there is no tissue
SEAM_DEPTH = 3  # lines inside of each side of a box that the step across its edge is compared with


def within_reach(drawn: np.ndarray, pixel_spacing: float) -> np.ndarray:
    """Boolean mask (H, W) of the drawn nodule and the `REACH_MM` around it.

    Args:
        drawn: boolean mask (H, W) of the nodule.
        pixel_spacing: edge of a pixel in mm.
    """
    return distance_transform_edt(~drawn) <= REACH_MM / pixel_spacing


def nodule_tissue(hu: np.ndarray, drawn: np.ndarray, pixel_spacing: float) -> np.ndarray:
    """Boolean mask (H, W) of the tissue (HU above -400) in the drawn nodule and within 4.2 mm of it.

    Args:
        hu: (H, W) in Hounsfield units.
        drawn: boolean mask (H, W) of the nodule as the map draws it.
        pixel_spacing: edge of a pixel in mm.
    """
    return within_reach(drawn, pixel_spacing) & (hu > NODULE_TISSUE_HU)


def nodule_measures(hu: np.ndarray, drawn: np.ndarray, pixel_spacing: float) -> dict[str, float]:
    """Measure a nodule in a crop.

    Args:
        hu: (H, W) in Hounsfield units.
        drawn: boolean mask (H, W) of the nodule as the map draws it.
        pixel_spacing: edge of a pixel in mm.

    Returns:
        {name: value}, in the order of `MEASURES`:
        `area_mm2` of the `nodule_tissue`;
        `mean_hu` and `spread_hu` (standard deviation) inside the drawn nodule;
        and of the largest piece of the tissue `circularity` (4π area / perimeter², 1 for a disc), `solidity` (area
        over that of the convex hull) and `margin_hu_per_mm`, the mean gradient on the pixels along its edge. These
        three are NaN where there is no tissue.

    Raises:
        ValueError: for an empty `drawn`, or shapes that differ.
    """
    if hu.shape != drawn.shape or not drawn.any():
        raise ValueError(
            f"`drawn` has the shape {drawn.shape} and {int(drawn.sum())} pixels, "
            f"but a nodule in the shape of `hu`, {hu.shape}, is needed."
        )
    hu = hu.astype(np.float64)
    tissue = nodule_tissue(hu, drawn, pixel_spacing)
    measures = {
        "area_mm2": float(tissue.sum() * pixel_spacing**2),
        "mean_hu": float(hu[drawn].mean()),
        "spread_hu": float(hu[drawn].std()),
    }
    if not tissue.any():
        return measures | dict.fromkeys(SHAPE_MEASURES, float("nan"))
    pieces = label(tissue, connectivity=1)
    region = max(regionprops(pieces), key=lambda piece: piece.area)
    piece = np.pad(pieces == region.label, 1)
    edge = (piece & ~binary_erosion(piece)) | (binary_dilation(piece) & ~piece)
    steepness = np.hypot(*np.gradient(np.pad(hu, 1, mode="edge"), pixel_spacing))
    measures["circularity"] = float(4 * np.pi * region.area / perimeter_crofton(piece, 4) ** 2)
    measures["solidity"] = float(region.solidity)
    measures["margin_hu_per_mm"] = float(steepness[edge].mean())
    return measures


def change_by_distance(change: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean |change| in each of the seven rings `RING_NAMES` around the drawn nodule.

    Args:
        change: (H, W), guided minus unguided, in HU.
        drawn: boolean mask (H, W) of the nodule.

    Returns:
        (7,), NaN where a ring has no pixel.
    """
    ring = np.digitize(distance_transform_edt(~drawn), RING_LIMITS, right=True).ravel()
    counts = np.bincount(ring, minlength=len(RING_NAMES))
    sums = np.bincount(ring, np.abs(change).ravel(), minlength=len(RING_NAMES))
    return np.divide(sums, counts, out=np.full(len(RING_NAMES), np.nan), where=counts > 0)


def seam_energy(change: np.ndarray, box: tuple[int, int, int, int], depth: int = SEAM_DEPTH) -> tuple[float, float]:
    """Mean squared step of `change` across the edge of a box, and between the lines just inside of it.

    The two are equal where the box leaves no seam. A side at the border of the image has no line beyond it and is left
    out; without any other side, both are NaN.

    Args:
        change: (H, W), guided minus unguided, in HU.
        box: (y0, x0, y1, x1), half-open.
        depth: number of steps inside of each side.
    """
    y0, x0, y1, x1 = box
    across, inside = [], []
    for image, (low, high), (first, last) in ((change, (y0, y1), (x0, x1)), (change.T, (x0, x1), (y0, y1))):
        # step k lies between the lines k and k + 1
        steps = np.diff(image[:, first:last].astype(np.float64), axis=0) ** 2
        if low > 0:
            across.append(steps[low - 1])
            inside.append(steps[low : low + depth].ravel())
        if high < image.shape[0]:
            across.append(steps[high - 1])
            inside.append(steps[high - 1 - depth : high - 1].ravel())
    if not across:
        return float("nan"), float("nan")
    return float(np.concatenate(across).mean()), float(np.concatenate(inside).mean())
