"""The four rated features of a nodule, and what counts as malignant: the one definition.

Radiologists of LIDC-IDRI rated each feature with whole numbers from 1 to 5. A value between two of them, such as the
median of two readers or a user's 2.5, is rounded to the nearest whole rating, halves up. So a tie falls to the
malignant side, which avoids false negatives (thesis, section 3.4.1). Maps, classifiers, guidance and evaluation all
use this rounding.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NODULE_FEATURES = ("malignancy", "lobulation", "spiculation", "texture")
LOWEST_RATING, HIGHEST_RATING = 1, 5
# Lower ratings of malignancy are benign and higher ones malignant. Where there are two classes only, 3 is malignant.
INDETERMINATE_RATING = 3
CLEARLY_MALIGNANT_RATING = 4
BENIGN_CLASS, MALIGNANT_CLASS = 0, 1
MALIGNANCY_WORDS = {"benign": 2, "malignant": 4}  # the rating that each word stands for


def whole_rating(ratings: ArrayLike) -> NDArray[np.float64]:
    """Round ratings to whole numbers, halves up.

    Args:
        ratings: a number, or an array of any shape, in 1..5. NaN stays NaN.

    Returns:
        Floating-point array of the same shape.

    >>> whole_rating([2.49, 2.5, 3.4]).tolist()
    [2.0, 3.0, 3.0]
    """
    return np.asarray(np.floor(np.asarray(ratings, dtype=np.float64) + 0.5))


def aggregate_rating(ratings: Sequence[int]) -> int:
    """One rating 1..5 for those of all readers: their median, halves up.

    Args:
        ratings: whole numbers 1..5, one of each reader.

    Raises:
        ValueError: for no rating, or one outside 1..5.

    >>> aggregate_rating([2, 3]), aggregate_rating([2, 2, 3]), aggregate_rating([5, 5, 5, 4])
    (3, 2, 5)
    """
    if len(ratings) == 0 or min(ratings) < LOWEST_RATING or max(ratings) > HIGHEST_RATING:
        raise ValueError(f"`ratings` is {list(ratings)}, but one rating in 1..5 or more are needed.")
    return int(whole_rating(np.median(ratings)))


def is_malignant(ratings: ArrayLike) -> NDArray[np.bool_]:
    """Whether ratings of malignancy belong to the class "malignant": 3 and more, after rounding halves up.

    Args:
        ratings: a number, or an array of any shape, in 1..5.

    Returns:
        Boolean array of the same shape.

    >>> is_malignant([2.4, 2.5, 4]).tolist()
    [False, True, True]
    """
    return np.asarray(whole_rating(ratings) >= INDETERMINATE_RATING)


def is_clear(ratings: ArrayLike) -> NDArray[np.bool_]:
    """Whether ratings of malignancy are clearly benign (1, 2) or clearly malignant (4, 5), after rounding halves up.

    Args:
        ratings: a number, or an array of any shape, in 1..5.

    Returns:
        Boolean array of the same shape.

    >>> is_clear([2.4, 2.5, 3.4, 3.5]).tolist()
    [True, False, False, True]
    """
    return np.asarray(whole_rating(ratings) != INDETERMINATE_RATING)


def malignancy_rating(malignancy: str | float) -> float:
    """The rating 1..5 that "benign" (2) and "malignant" (4) stand for; a rating stays what it is.

    Args:
        malignancy: "benign", "malignant", or a rating 1..5.

    Raises:
        ValueError: for another word, or a rating outside 1..5.

    >>> malignancy_rating("malignant"), malignancy_rating(2.5)
    (4.0, 2.5)
    """
    rating = _rating_from(malignancy, MALIGNANCY_WORDS)
    if rating is None:
        raise ValueError(f'`malignancy` is {malignancy!r}, but "benign", "malignant" or a rating 1..5 is needed.')
    return rating


def feature_rating(feature: str, value: str | float) -> float:
    """The rating 1..5 that a feature is asked for.

    Args:
        feature: one of `NODULE_FEATURES`.
        value: a rating 1..5; for malignancy also "benign" or "malignant".

    Raises:
        ValueError: for another feature or value.

    >>> feature_rating("malignancy", "malignant"), feature_rating("texture", 4.5)
    (4.0, 4.5)
    """
    if feature not in NODULE_FEATURES:
        raise ValueError(
            f"`nodule_features` has the key {feature!r}, but the features are {', '.join(NODULE_FEATURES)}."
        )
    words = MALIGNANCY_WORDS if feature == "malignancy" else {}
    rating = _rating_from(value, words)
    if rating is None:
        allowed = " or ".join(["a rating 1..5", *(f'"{word}"' for word in words)])
        raise ValueError(f"`nodule_features` has {feature} = {value!r}, but {allowed} is needed.")
    return rating


def feature_target(feature: str, value: str | float) -> float:
    """What a classifier is asked for: the class 0 (benign) or 1 (malignant), or the rating 1..5 of another feature.

    Args:
        feature: one of `NODULE_FEATURES`.
        value: a rating 1..5; for malignancy also "benign" or "malignant".

    Raises:
        ValueError: for another feature or value.

    >>> feature_target("malignancy", "malignant"), feature_target("malignancy", 2), feature_target("texture", 4)
    (1.0, 0.0, 4.0)
    """
    rating = feature_rating(feature, value)
    if feature != "malignancy":
        return rating
    return float(MALIGNANT_CLASS if is_malignant(rating) else BENIGN_CLASS)


def _rating_from(value: object, words: Mapping[str, int]) -> float | None:
    """The rating 1..5 that a number or one of the words means; None where it means none."""
    if isinstance(value, str):
        value = words.get(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    rating = float(value)
    return rating if LOWEST_RATING <= rating <= HIGHEST_RATING else None
