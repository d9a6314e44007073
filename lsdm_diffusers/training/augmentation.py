"""Augmentation of slices for training: mirror, small turn and scale, and what scanners differ by in HU."""

from typing import NamedTuple

import cv2
import numpy as np

from ..hounsfield import HU_MAX, HU_MIN, hu_from_scaled, scaled_hu
from ..labels import SemanticLabel

AIR_HU = -1000


class Augmentation(NamedTuple):
    """How far a view may differ from its slice."""

    turn_degrees: float  # to either side; patients lie this askew
    scale: float  # to either side of 1; field of view and body differ by more
    hu_offset: float  # to either side, HU; calibration of air and water is held to 4 to 10
    contrast: float  # to either side of 1, of HU above air; tube voltage and contrast medium differ by this


AUGMENTATION = Augmentation(turn_degrees=8, scale=0.1, hu_offset=8, contrast=0.02)


def augment(
    pixels: np.ndarray,
    semantic_map: np.ndarray,
    ratings: np.ndarray,
    generator: np.random.Generator,
    fill_with_air: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An augmented view of a slice, of its map and of its rating maps.

    Args:
        pixels: (H, W) in [-1, 1], float32.
        semantic_map: labels (H, W), uint8.
        ratings: (4, H, W), float32, as `rating_maps` makes them.
        generator: the random generator.
        fill_with_air: fill what is turned in from outside the frame with air and background. Off, for a crop, whose
            surroundings go on: mirror the crop there.

    Returns:
        Pixels, map and rating maps, of the shapes and dtypes given.
    """
    height, width = semantic_map.shape
    turn = generator.uniform(-AUGMENTATION.turn_degrees, AUGMENTATION.turn_degrees)
    scale = 1 + generator.uniform(-AUGMENTATION.scale, AUGMENTATION.scale)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn, scale)
    if generator.integers(2):
        matrix[:, 2] += matrix[:, 0] * (width - 1)
        matrix[:, 0] *= -1
    border = cv2.BORDER_CONSTANT if fill_with_air else cv2.BORDER_REFLECT_101

    def warped(array: np.ndarray, interpolation: int, fill: float) -> np.ndarray:
        return np.asarray(
            cv2.warpAffine(array, matrix, (width, height), flags=interpolation, borderMode=border, borderValue=fill)
        )

    pixels = warped(pixels, cv2.INTER_CUBIC, -1.0)
    semantic_map = warped(semantic_map, cv2.INTER_NEAREST, int(SemanticLabel.BACKGROUND))
    ratings = np.stack([warped(rating, cv2.INTER_NEAREST, 0.0) for rating in ratings])

    hu = hu_from_scaled(pixels)
    contrast = 1 + generator.uniform(-AUGMENTATION.contrast, AUGMENTATION.contrast)
    offset = generator.uniform(-AUGMENTATION.hu_offset, AUGMENTATION.hu_offset)
    is_blank = hu <= HU_MIN  # padding and blanked background are no measured air
    changed = AIR_HU + contrast * (hu - AIR_HU) + offset
    hu = np.clip(np.where(is_blank, HU_MIN, changed), HU_MIN, HU_MAX)
    return np.asarray(scaled_hu(hu), dtype=np.float32), semantic_map, ratings
