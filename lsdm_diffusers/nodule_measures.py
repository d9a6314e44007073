"""Measurements of a nodule that no classifier's gradient was taken of: size, density, shape and margin, by scikit-image."""

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion
from skimage.measure import label, perimeter_crofton, regionprops
from skimage.morphology import disk

TISSUE = -400  # HU above which a pixel counts to the nodule, halfway from lung to tissue
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
    measures = {"area_mm2": float(tissue.sum() * spacing**2), "mean_hu": float(hu[drawn].mean()), "spread_hu": float(hu[drawn].std())}
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
