"""Histograms of HU in a nodule, its rim and its surroundings, and how far they are from those of real nodules."""

import math

import numpy as np
from scipy.ndimage import binary_dilation
from skimage.morphology import disk

from ...hounsfield import HU_MAX, HU_MIN

BIN_WIDTH = 8  # HU; finer than the noise of a slice
BIN_EDGES = np.arange(HU_MIN, HU_MAX + BIN_WIDTH + 1, BIN_WIDTH)  # HU
RIM = 4  # pixels around the drawn nodule


def hu_counts(hu: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Histograms of each crop in the drawn nodule, in its rim and outside of both.

    Args:
        hu: (N, H, W).
        drawn: boolean masks (N, H, W) of the nodules.

    Returns:
        {"nodule", "rim", "outside": counts in the bins of `BIN_EDGES`, (N, bins)}.
    """
    near = np.stack([binary_dilation(mask, disk(RIM)) for mask in drawn])
    regions = {"nodule": drawn, "rim": near & ~drawn, "outside": ~near}
    counts = {}
    for region, masks in regions.items():
        values = [crop[mask] for crop, mask in zip(hu, masks, strict=True)]
        counts[region] = np.stack([np.histogram(of_crop, BIN_EDGES)[0] for of_crop in values])
    return counts


def hu_wasserstein(counts: np.ndarray, other: np.ndarray) -> float:
    """Wasserstein-1 distance in HU of two histograms (bins,): the area between their distribution functions.

    NaN where either is empty. The bootstrap asks for it too often for SciPy's, which sorts its values each time.
    """
    if not counts.sum() or not other.sum():
        return math.nan
    difference = np.cumsum(counts) / counts.sum() - np.cumsum(other) / other.sum()
    return float(np.abs(difference).sum() * BIN_WIDTH)


def outside_three_deviations(reference: np.ndarray) -> np.ndarray:
    """The bins that lie beyond mean ± 3 standard deviations of a histogram (bins,), boolean (bins,)."""
    middle = (BIN_EDGES[1:] + BIN_EDGES[:-1]) / 2
    mean = np.average(middle, weights=reference)
    deviation = math.sqrt(np.average((middle - mean) ** 2, weights=reference))
    return np.abs(middle - mean) > 3 * deviation
