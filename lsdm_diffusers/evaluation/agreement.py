"""How well scores agree with the readers' ratings of nodules, and the readers with each other."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from ..nodule_features import HIGHEST_RATING, INDETERMINATE_RATING, LOWEST_RATING, is_clear, is_malignant

MALIGNANT_FROM = INDETERMINATE_RATING - 0.5  # ratings from here on round to malignant, halves up
CALIBRATION_BINS = 10


def calibration_error(
    predicted: np.ndarray, observed: np.ndarray, low: float, high: float, bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error: |mean predicted - mean observed| in bins of the prediction, weighted by count.

    Args:
        predicted: (N,), in low..high.
        observed: (N,), on the same scale.
        low: lower end of the bins.
        high: upper end of the bins.
        bins: number of bins of equal width.
    """
    bin_index = np.clip(((predicted - low) / (high - low) * bins).astype(int), 0, bins - 1)
    counts = np.bincount(bin_index, minlength=bins)
    differences = np.bincount(bin_index, predicted - observed, minlength=bins)
    return float(np.abs(differences).sum() / counts.sum())


def area_under_curve(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, by ranks (Mann and Whitney); NaN where all nodules are of one class.

    A bootstrap calls it thousands of times, for which scikit-learn's checks are too slow.

    Args:
        positive: (N,), boolean.
        scores: (N,), higher for the positive ones.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return math.nan
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's coefficient of two columns, (N,) each; NaN where either is constant or empty."""
    ranks_a, ranks_b = rankdata(a), rankdata(b)
    if not len(a) or not np.ptp(ranks_a) or not np.ptp(ranks_b):
        return math.nan
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def rating_agreement(scores: np.ndarray, ratings: np.ndarray, objective: str) -> dict[str, float]:
    """How well scores tell the ratings 1..5 of nodules; NaN where all nodules have one label.

    Args:
        scores: (N,), log-odds of malignancy for the objective "classification", ratings for "regression".
        ratings: (N,), 1..5.
        objective: "classification" or "regression".

    Returns:
        For "classification", `auc_ge3` (malignant against benign), `auc_ge4` (without the nodules rated 3) and
        `accuracy_ge3`; for "regression", `spearman` and `mae`, the mean absolute error. For both, the calibration
        error `ece`: in probability, or in rating.
    """
    if objective == "classification":
        malignant, clear = is_malignant(ratings), is_clear(ratings)
        probability = 1 / (1 + np.exp(-scores))
        return {
            "auc_ge3": area_under_curve(malignant, scores),
            "auc_ge4": area_under_curve(malignant[clear], scores[clear]),
            "accuracy_ge3": float(((scores > 0) == malignant).mean()),
            "ece": calibration_error(probability, malignant, 0, 1),
        }
    return {
        "spearman": rank_correlation(scores, ratings),
        "mae": float(np.abs(scores - ratings).mean()),
        "ece": calibration_error(scores, ratings, LOWEST_RATING, HIGHEST_RATING),
    }


def readers_agreement(ratings_by_nodule: Sequence[Sequence[int]], feature: str) -> dict[str, float]:
    """How far readers of the same nodule agree, each against the mean of the others: the yardstick of any judge.

    Args:
        ratings_by_nodule: the ratings of all readers of each nodule; nodules with one reader are left out.
        feature: the rated feature.

    Returns:
        `rating_agreement` without the calibration error, `deviation` (mean standard deviation between readers) and
        `nodules` (their number).

    Raises:
        ValueError: where no nodule has two readers.
    """
    shared = [np.array(ratings, dtype=np.float64) for ratings in ratings_by_nodule if len(ratings) > 1]
    if not shared:
        raise ValueError("`ratings_by_nodule` has no nodule with two readers, but at least one is needed.")
    one_reader = np.concatenate(shared)
    others = np.concatenate([(ratings.sum() - ratings) / (len(ratings) - 1) for ratings in shared])
    if feature == "malignancy":
        # as log-odds, the others' mean needs the sign of its class
        figures = rating_agreement(others - MALIGNANT_FROM, one_reader, "classification")
    else:
        figures = rating_agreement(others, one_reader, "regression")
    figures.pop("ece")
    figures["deviation"] = float(np.mean([ratings.std(ddof=1) for ratings in shared]))
    figures["nodules"] = len(shared)
    return figures
