"""The four rated features of a nodule, and what counts as malignant: the one definition.

Radiologists of LIDC-IDRI rated each feature with whole numbers from 1 to 5. A value between two of them, such as the median
of two readers or a user's 2.5, is rounded to the nearest whole rating, halves up. So a tie falls to the malignant side,
which avoids false negatives (thesis, section 3.4.1). Maps, classifiers, guidance and evaluation all use this rounding.
"""

import math
from collections.abc import Sequence

import numpy as np

NODULE_FEATURES = ("malignancy", "lobulation", "spiculation", "texture")
LOWEST_RATING, HIGHEST_RATING = 1, 5
INDETERMINATE_RATING = (
    3  # lower ratings are benign, higher ones malignant; as one of two classes, 3 counts as malignant
)
CLEARLY_MALIGNANT_RATING = 4
BENIGN_CLASS, MALIGNANT_CLASS = 0, 1


def whole_rating(rating):
    """Round ratings to whole numbers, halves up.

    Args:
        rating: a number, or an array of any shape, in 1..5.

    Returns:
        `np.floor(rating + 0.5)`, a number or an array of the same shape.

    >>> float(whole_rating(2.5)), float(whole_rating(3.4))
    (3.0, 3.0)
    """
    return np.floor(np.asarray(rating, dtype=np.float64) + 0.5)


def aggregate_rating(ratings: Sequence[int]) -> int:
    """One rating 1..5 for those of all readers: their median, halves up.

    Raises:
        ValueError: for no rating, or one outside 1..5.

    >>> aggregate_rating([2, 3]), aggregate_rating([2, 2, 3]), aggregate_rating([5, 5, 5, 4])
    (3, 2, 5)
    """
    if not len(ratings) or min(ratings) < LOWEST_RATING or max(ratings) > HIGHEST_RATING:
        raise ValueError(f"`ratings` is {list(ratings)}, but one rating in 1..5 or more are needed.")
    return int(whole_rating(np.median(ratings)))


def is_malignant(ratings) -> np.ndarray:
    """Whether ratings of malignancy belong to the class "malignant": 3 and more, after rounding halves up.

    Args:
        ratings: a number, or an array of any shape, in 1..5.

    Returns:
        Boolean array of the same shape.

    >>> is_malignant([2.4, 2.5, 4]).tolist()
    [False, True, True]
    """
    return whole_rating(ratings) >= INDETERMINATE_RATING


def is_clear(ratings) -> np.ndarray:
    """Whether ratings of malignancy are clearly benign (1, 2) or clearly malignant (4, 5), after rounding halves up.

    Args:
        ratings: a number, or an array of any shape, in 1..5.

    Returns:
        Boolean array of the same shape.
    """
    return whole_rating(ratings) != INDETERMINATE_RATING


def malignancy_rating(malignancy) -> float:
    """The rating 1..5 that "benign" (2) and "malignant" (4) stand for; a rating stays what it is.

    Raises:
        ValueError: for another word, or a rating outside 1..5.
    """
    rating = {"benign": 2, "malignant": 4}.get(malignancy, malignancy) if isinstance(malignancy, str) else malignancy
    if not _is_rating(rating):
        raise ValueError(f'`malignancy` is {malignancy!r}, but "benign", "malignant" or a rating 1..5 is needed.')
    return float(rating)


def feature_target(feature: str, value) -> float:
    """What a classifier is asked for: the class 0 (benign) or 1 (malignant), or the rating 1..5 of the other features.

    Args:
        feature: one of `NODULE_FEATURES`.
        value: a rating 1..5; for malignancy also "benign" or "malignant".

    Raises:
        ValueError: for another feature or value.

    >>> feature_target("malignancy", "malignant"), feature_target("texture", 4)
    (1.0, 4.0)
    """
    if feature not in NODULE_FEATURES:
        raise ValueError(
            f"`nodule_features` has the key {feature!r}, but the features are {', '.join(NODULE_FEATURES)}."
        )
    if feature == "malignancy" and value in ("benign", "malignant"):
        return float(MALIGNANT_CLASS if value == "malignant" else BENIGN_CLASS)
    if not _is_rating(value):
        words = ' or "benign" or "malignant"' if feature == "malignancy" else ""
        raise ValueError(f"`nodule_features` has {feature} = {value!r}, but a rating 1..5{words} is needed.")
    return float(is_malignant(value)) if feature == "malignancy" else float(value)


def _is_rating(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return False
    return math.isfinite(value) and LOWEST_RATING <= value <= HIGHEST_RATING
