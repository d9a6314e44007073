"""Whether slices obey their maps: labels and nodules recomputed from the image, and the densities under each label."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import wasserstein_distance

from ..labels import SemanticLabel
from ..segmentation import semantic_map_from_hu
from ..semantic_map import find_nodules
from .measures import LUNG_LIMIT_HU, within_reach

MISSED_DICE = 0.1  # a nodule of a lower Dice coefficient is not in the image


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two boolean masks, at least one of which is not empty."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def _tissue_masks(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Boolean masks (H, W) of the tissues that `label_dice` compares; nodules count to the lung."""
    lung = labels >= SemanticLabel.LUNG
    return {
        "dice_lung": lung,
        "dice_body": (labels > SemanticLabel.BACKGROUND) & ~lung,  # soft tissue and bone included
        "dice_bone": labels == SemanticLabel.HIGH_DENSITY,
    }


def label_dice(labels: np.ndarray, hu: np.ndarray, pixel_spacing: float) -> dict[str, float]:
    """Dice coefficients of lung, body and bone between a map and the labels recomputed from its slice.

    Args:
        labels: the map, (H, W), labels 0..7.
        hu: the slice, (H, W), in Hounsfield units.
        pixel_spacing: edge of a pixel in mm.

    Returns:
        {"dice_lung", "dice_body", "dice_bone": coefficient}; a tissue that the map does not show is left out.
    """
    drawn, recomputed = _tissue_masks(labels), _tissue_masks(semantic_map_from_hu(hu, pixel_spacing))
    return {name: dice(mask, recomputed[name]) for name, mask in drawn.items() if mask.any()}


def nodule_obedience(labels: np.ndarray, hu: np.ndarray, pixel_spacing: float) -> list[dict[str, float]]:
    """How far each nodule of a map is in the slice, by the tissue (HU above -500) in it and in the lung within 4.2 mm.

    Args:
        labels: the map, (H, W), labels 0..7.
        hu: the slice, (H, W), in Hounsfield units.
        pixel_spacing: edge of a pixel in mm.

    Returns:
        For each nodule, in the order of `find_nodules`: `nodule_dice`, `diameter_error_mm` (of the circles of equal
        area) and `missed_nodules` (1 where it is not in the image, else 0).
    """
    figures = []
    height, width = labels.shape
    lung = labels == SemanticLabel.LUNG  # other nodules are not lung, so that their tissue does not count
    for nodule in find_nodules(labels):
        drawn = nodule.mask((height, width))
        near = within_reach(drawn, pixel_spacing) & (lung | drawn)
        tissue = near & (hu > LUNG_LIMIT_HU)
        overlap = dice(tissue, drawn)
        error = abs(equal_area_diameter(tissue, pixel_spacing) - equal_area_diameter(drawn, pixel_spacing))
        figures.append(
            {
                "nodule_dice": overlap,
                "diameter_error_mm": error,
                "missed_nodules": float(overlap < MISSED_DICE),
            }
        )
    return figures


def equal_area_diameter(mask: np.ndarray, pixel_spacing: float) -> float:
    """Diameter in mm of the circle that has the area of a mask."""
    return float(2 * np.sqrt(mask.sum() / np.pi) * pixel_spacing)


def hu_by_label(maps: Sequence[np.ndarray], slices: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The HU of all slices under each label.

    Args:
        maps: (H, W) each, labels 0..7.
        slices: (H, W) each, in Hounsfield units.

    Returns:
        {label name in lower case: HU, (pixels,)}; the background, which is air or cloth, is left out.
    """
    labels = np.concatenate([semantic_map.ravel() for semantic_map in maps])
    hu = np.concatenate([image.ravel() for image in slices])
    by_label = {}
    for name, label in SemanticLabel.__members__.items():
        under_label = labels == label
        if label != SemanticLabel.BACKGROUND and under_label.any():
            by_label[name.lower()] = hu[under_label]
    return by_label


def hu_distances(real: dict[str, np.ndarray], generated: dict[str, np.ndarray]) -> dict[str, float]:
    """Wasserstein-1 distances of the HU under each label, over the standard deviation of the real HU.

    Args:
        real: {label name: HU} from `hu_by_label`.
        generated: likewise.

    Returns:
        {label name: distance}, of the labels that both have.
    """
    distances = {}
    for name, hu in real.items():
        deviation = hu.std()
        if name in generated and deviation > 0:
            distances[name] = float(wasserstein_distance(hu, generated[name]) / deviation)
    return distances
