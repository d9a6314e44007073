"""How well scores agree with the readers' ratings of nodules: AUC, rank correlation, calibration, and the readers among themselves."""

import math

import numpy as np
from scipy.stats import rankdata

from ..nodule_features import is_clear, is_malignant


def calibration_error(predicted: np.ndarray, observed: np.ndarray, low: float, high: float, bins: int = 10) -> float:
    """Expected calibration error: |mean predicted - mean observed| of each of the equal bins of `predicted`, weighted by their counts."""
    bin_of = np.clip(((predicted - low) / (high - low) * bins).astype(int), 0, bins - 1)
    counts, differences = (
        np.bincount(bin_of, minlength=bins),
        np.bincount(bin_of, predicted - observed, minlength=bins),
    )
    return float(np.abs(differences).sum() / counts.sum())


def area_under_curve(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of (N,) scores for the positive ones, (N,) boolean; NaN for one class.

    By ranks (Mann and Whitney): a bootstrap asks for it too often for scikit-learn's checks.
    """
    count, others = int(positive.sum()), int((~positive).sum())
    return (
        float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))
        if count and others
        else math.nan
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's coefficient of (N,) and (N,); NaN where either is constant or empty."""
    ranks = rankdata(a), rankdata(b)
    return float(np.corrcoef(*ranks)[0, 1]) if len(a) and all(map(np.ptp, ranks)) else math.nan


def rating_agreement(scores: np.ndarray, ratings: np.ndarray, objective: str) -> dict[str, float]:
    """How well scores tell the ratings 1..5 of (N,) nodules; NaN where there is one label only.

    Args:
        scores: of malignancy log-odds for the objective "classification"; for "regression", ratings.

    Returns:
        AUC of malignant (2.5 and more) against benign, AUC of 3.5 and more against benign, accuracy; or Spearman's coefficient and mean
        absolute error; and the calibration error of either.
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
        "ece": calibration_error(scores, ratings, 1, 5),
    }


def readers_agreement(of_nodules: list[list[int]], feature: str) -> dict[str, float]:
    """What readers of the same nodule differ by, the yardstick of any judge: each reader against the mean of the others.

    Args:
        of_nodules: every reader's rating of each nodule; those with one reader are passed over.

    Raises:
        ValueError: where no nodule has two readers.
    """
    several = [np.array(ratings, dtype=np.float64) for ratings in of_nodules if len(ratings) > 1]
    if not several:
        raise ValueError("`of_nodules` has no nodule with two readers, but at least one is needed.")
    one = np.concatenate(several)
    others = np.concatenate([(ratings.sum() - ratings) / (len(ratings) - 1) for ratings in several])
    # the others' mean as the score of a reader's rating: as a log-odds whose sign is that of the class
    objective = "classification" if feature == "malignancy" else "regression"
    figures = rating_agreement(others - 2.5 if objective == "classification" else others, one, objective)
    figures.pop("ece")
    return figures | {
        "deviation": float(np.mean([ratings.std(ddof=1) for ratings in several])),
        "nodules": len(several),
    }
