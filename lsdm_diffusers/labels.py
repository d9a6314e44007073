"""The eight labels of a semantic map, their colours, and maps as tensors.

The models import this module, and their remote code carries a copy of it. So it needs torch and NumPy only.
"""

from enum import IntEnum

import numpy as np
import torch
import torch.nn.functional as F

from .nodule_features import HIGHEST_RATING, INDETERMINATE_RATING, LOWEST_RATING, whole_rating

# Bounds between the tissues of the body, in HU; a value on a bound has the denser label. Thesis, section 4.3.
BODY_FROM_HU = -400  # about half-way from lung (-850) to soft tissue (50); what is less dense is air or lung
SOFT_TISSUE_FROM_HU = 0  # water: fat lies below, muscle, blood and organs above
HIGH_DENSITY_FROM_HU = 200  # above soft tissue even where it takes up contrast; bone and contrast-filled vessels


class SemanticLabel(IntEnum):
    """The eight labels of a semantic map. The grey value or palette index of a pixel in a PNG is its label."""

    BACKGROUND = 0  # all that is neither body nor lung: air around the patient, in trachea and bowel, table, clothes
    BODY = 1  # -400..0 HU: fat, skin
    SOFT_TISSUE = 2  # 0..200 HU
    HIGH_DENSITY = 3  # from 200 HU: bone, contrast-filled vessels
    LUNG = 4  # the lungs with the vessels inside them
    NODULE_BENIGN = 5  # malignancy rating below 3
    NODULE_INDETERMINATE = 6  # malignancy rating 3
    NODULE_MALIGNANT = 7  # malignancy rating above 3

    @classmethod
    def for_malignancy(cls, rating: float) -> "SemanticLabel":
        """The nodule label for a malignancy rating (thesis, Fig. 4.1).

        Args:
            rating: 1..5; it is rounded to a whole number, halves up.

        Raises:
            ValueError: for a rating outside 1..5.

        >>> SemanticLabel.for_malignancy(2.5).name
        'NODULE_INDETERMINATE'
        """
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
PALETTE = np.array(  # red, green, blue of each label
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


def check_label_array(labels: np.ndarray) -> None:
    """Raise ValueError unless an array, of any shape, holds integer labels 0..7."""
    if labels.dtype == bool or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`semantic_map` has dtype {labels.dtype}, but integer labels 0..{NUM_LABELS - 1} are needed."
        )
    wrong = labels[(labels < 0) | (labels >= NUM_LABELS)]
    if wrong.size:
        raise ValueError(
            f"`semantic_map` contains the value {wrong[0]} ({wrong.size} pixels outside the labels), "
            f"but labels are 0..{NUM_LABELS - 1}."
        )


def check_label_tensor(semantic_map: torch.Tensor, num_labels: int = NUM_LABELS) -> None:
    """Raise ValueError unless a tensor (B, H, W) holds integer labels 0..num_labels-1.

    While `torch.compile` or `torch.export` traces a model, only shape and dtype are checked, as
    the values are unknown then.
    """
    if semantic_map.ndim != 3 or semantic_map.is_floating_point() or semantic_map.is_complex():
        raise ValueError(
            f"`semantic_map` has shape {tuple(semantic_map.shape)} and dtype {semantic_map.dtype}, "
            "but integer labels (B, H, W) are needed."
        )
    if torch.compiler.is_compiling():
        return
    low, high = semantic_map.min().item(), semantic_map.max().item()
    if low < 0 or high >= num_labels:
        raise ValueError(
            f"`semantic_map` contains the value {low if low < 0 else high}, but labels are 0..{num_labels - 1}."
        )


def max_pool_one_hot(semantic_map: torch.Tensor, size: tuple[int, int], num_labels: int = NUM_LABELS) -> torch.Tensor:
    """m̃: maps max-pooled to the resolution of a block, then one-hot (thesis, section 3.3).

    Max-pooling keeps the larger label, so that a small nodule (5..7) never vanishes.

    Args:
        semantic_map: integer labels 0..num_labels-1, (B, H, W).
        size: height and width of the result; each divides that of the map.
        num_labels: labels k of the map.

    Returns:
        (B, num_labels, *size), float32.

    Raises:
        ValueError: for another number of dimensions, or a size that does not divide that of the map.

    >>> max_pool_one_hot(torch.tensor([[[4, 4], [4, 7]]]), (1, 1)).flatten().tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """
    if semantic_map.ndim != 3:
        raise ValueError(f"`semantic_map` has shape {tuple(semantic_map.shape)}, but (B, H, W) is needed.")
    height, width = semantic_map.shape[1:]
    if min(size) < 1 or height % size[0] or width % size[1]:
        raise ValueError(
            f"`semantic_map` of {height}x{width} pixels cannot be max-pooled to {size[0]}x{size[1]}: "
            "the map must be a whole multiple of that size."
        )
    window = (height // size[0], width // size[1])
    pooled = F.max_pool2d(semantic_map[:, None].float(), window, window)[:, 0].long()
    return F.one_hot(pooled, num_labels).movedim(-1, 1).float().contiguous()
