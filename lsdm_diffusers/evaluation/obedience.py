"""Whether slices obey their maps: labels and nodules recomputed from the image, and the densities under each label."""

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.stats import wasserstein_distance
from skimage.morphology import disk

from ..labels import SemanticLabel
from ..segmentation import semantic_map_from_hu
from ..semantic_map import find_nodules

AIR_TO_TISSUE = -500  # HU between lung and nodule


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks, at least one of which is not empty."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def label_dice(labels: np.ndarray, hu: np.ndarray, spacing: float) -> dict[str, float]:
    """Dice of lung, body (soft tissue and bone included) and bone between a map (H, W) and the labels recomputed from a slice in HU.

    A tissue that the map does not show has no figure. `spacing` is in mm.
    """
    again = semantic_map_from_hu(hu, spacing)
    masks = {
        "dice_lung": [some >= SemanticLabel.LUNG for some in (labels, again)],
        "dice_body": [(some > SemanticLabel.BACKGROUND) & (some < SemanticLabel.LUNG) for some in (labels, again)],
        "dice_bone": [some == SemanticLabel.HIGH_DENSITY for some in (labels, again)],
    }
    return {name: dice(*pair) for name, pair in masks.items() if pair[0].any()}


def nodule_obedience(labels: np.ndarray, hu: np.ndarray, spacing: float) -> list[dict[str, float]]:
    """Dice, diameter error in mm and whether it is missed, for each nodule of a map, from the tissue within 6 pixels of it."""
    figures = []
    every = labels >= SemanticLabel.NODULE_BENIGN
    for nodule in find_nodules(labels):
        mask = nodule.mask(labels.shape)
        near = binary_dilation(mask, disk(6)) & (mask | ~every) & ((labels == SemanticLabel.LUNG) | mask)
        seen = near & (hu > AIR_TO_TISSUE)
        overlap = dice(seen, mask)
        diameters = [2 * np.sqrt(area.sum() / np.pi) * spacing for area in (seen, mask)]
        figures.append(
            {
                "nodule_dice": overlap,
                "diameter_error_mm": abs(diameters[0] - diameters[1]),
                "missed_nodules": float(overlap < 0.1),
            }
        )
    return figures


def hu_by_label(maps: list[np.ndarray], slices: list[np.ndarray]) -> dict[str, np.ndarray]:
    """{label name: the HU of all slices under that label}; the background, which is air or cloth, is left out."""
    drawn, hu = (np.concatenate([np.ravel(some) for some in images]) for images in (maps, slices))
    return {
        name.lower(): hu[drawn == label]
        for name, label in SemanticLabel.__members__.items()
        if label and (drawn == label).any()
    }


def hu_distances(real: dict[str, np.ndarray], generated: dict[str, np.ndarray]) -> dict[str, float]:
    """{label name: Wasserstein-1 distance of two HU histograms from `hu_by_label`, over the real standard deviation}, of labels in both."""
    return {
        name: float(wasserstein_distance(hu, generated[name]) / hu.std())
        for name, hu in real.items()
        if name in generated and hu.std()
    }
