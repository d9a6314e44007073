"""The eight labels of a semantic map, their colours, and the maps as tensors; needs torch and NumPy only."""

from enum import IntEnum

import numpy as np
import torch
import torch.nn.functional as F

from .nodule_features import HIGHEST_RATING, INDETERMINATE_RATING, LOWEST_RATING, whole_rating


class SemanticLabel(IntEnum):
    """The eight labels of a semantic map. The grey or palette index of a pixel in a PNG is its label."""

    BACKGROUND = 0  # everything that is not body or lung: air around the patient, in trachea and bowel, table, clothes
    BODY = 1  # -400..0 HU: fat, skin
    SOFT_TISSUE = 2  # 0..200 HU
    HIGH_DENSITY = 3  # from 200 HU: bone, contrast-filled vessels
    LUNG = 4  # the lungs with the vessels inside them
    NODULE_BENIGN = 5  # malignancy rating below 3
    NODULE_INDETERMINATE = 6  # malignancy rating 3
    NODULE_MALIGNANT = 7  # malignancy rating above 3

    @classmethod
    def for_malignancy(cls, rating: float) -> "SemanticLabel":
        """The nodule label for a malignancy rating in 1..5, rounded to a whole one, halves up (thesis, Fig. 4.1)."""
        if not LOWEST_RATING <= rating <= HIGHEST_RATING:
            raise ValueError(f"`rating` is {rating}, but a malignancy rating lies in 1..5.")
        whole = whole_rating(rating)
        if whole < INDETERMINATE_RATING:
            return cls.NODULE_BENIGN
        return cls.NODULE_INDETERMINATE if whole == INDETERMINATE_RATING else cls.NODULE_MALIGNANT


NUM_LABELS = len(SemanticLabel)
LABEL_NAMES = (
    "background",
    "body",
    "soft tissue",
    "high density",
    "lung",
    "nodule, malignancy < 3",
    "nodule, malignancy = 3",
    "nodule, malignancy > 3",
)
PALETTE = np.array(
    [
        (0, 0, 0),
        (214, 158, 120),
        (176, 74, 74),
        (240, 234, 206),
        (88, 136, 192),
        (98, 196, 94),
        (246, 200, 60),
        (232, 50, 172),
    ],
    dtype=np.uint8,
)


def check_labels(labels: np.ndarray) -> np.ndarray:
    if labels.dtype == bool or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`semantic_map` has dtype {labels.dtype}, but integer labels 0..{NUM_LABELS - 1} are needed."
        )
    if labels.size and (labels.min() < 0 or labels.max() >= NUM_LABELS):
        wrong = labels[(labels < 0) | (labels >= NUM_LABELS)]
        raise ValueError(
            f"`semantic_map` contains the value {wrong.flat[0]} ({wrong.size} pixels outside the labels), but labels are 0..{NUM_LABELS - 1}."
        )
    return labels


def check_label_tensor(semantic_map: torch.Tensor, num_labels: int = NUM_LABELS) -> None:
    """Raise ValueError unless the maps are integer labels 0..num_labels-1, (B, H, W)."""
    if semantic_map.ndim != 3 or semantic_map.is_floating_point() or semantic_map.is_complex():
        raise ValueError(
            f"`semantic_map` has shape {tuple(semantic_map.shape)} and dtype {semantic_map.dtype}, but integer labels (B, H, W) are needed."
        )
    low, high = semantic_map.min().item(), semantic_map.max().item()
    if low < 0 or high >= num_labels:
        raise ValueError(
            f"`semantic_map` contains the value {low if low < 0 else high}, but labels are 0..{num_labels - 1}."
        )


def max_pool_one_hot(semantic_map: torch.Tensor, size: tuple[int, int], num_labels: int = NUM_LABELS) -> torch.Tensor:
    """m̃: labels (B, H, W) max-pooled to `size`, then one-hot, (B, num_labels, *size), float32 (thesis, section 3.3).

    Max-pooling keeps the larger label, so a small nodule (5..7) never vanishes. `size` must divide (H, W).
    """
    height, width = semantic_map.shape[-2:]
    if semantic_map.ndim != 3:
        raise ValueError(f"`semantic_map` has shape {tuple(semantic_map.shape)}, but (B, H, W) is needed.")
    if min(size) < 1 or height % size[0] or width % size[1]:
        raise ValueError(
            f"`semantic_map` of {height}x{width} pixels cannot be max-pooled to {size[0]}x{size[1]}: not a whole multiple."
        )
    window = (height // size[0], width // size[1])
    pooled = F.max_pool2d(semantic_map[:, None].float(), window, window)[:, 0].long()
    return F.one_hot(pooled, num_labels).movedim(-1, 1).float().contiguous()
