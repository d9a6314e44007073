"""Confidence intervals from a bootstrap that draws whole patients, because nodules of one patient are alike."""

import warnings
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

CONFIDENCE = 0.95


class Estimate(TypedDict):
    """A statistic and its 95% interval [low, high]; NaN where there is none."""

    mean: float
    interval: list[float]


def draw_patients(patients: np.ndarray, repetitions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many whole patients as there are, with replacement, many times.

    Args:
        patients: (N,), the patient of each nodule.
        repetitions: number of draws R.
        seed: of the draws.

    Returns:
        (N,): index of each nodule's patient, 0..P - 1; and (R, P): how often each patient is drawn.
    """
    names, patient_index = np.unique(patients, return_inverse=True)
    equal_chances = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(seed).multinomial(len(names), equal_chances, size=repetitions)
    return patient_index, counts


def _interval(draws: np.ndarray, num_patients: int) -> list[float]:
    """The interval that holds 95% of the finite draws (R,); NaN for one patient, whose draws are all alike."""
    if num_patients < 2:
        return [np.nan, np.nan]
    tail = (1 - CONFIDENCE) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # every draw may be NaN
        return [float(bound) for bound in np.nanquantile(draws, (tail, 1 - tail))]


def patient_bootstrap(
    values: Sequence[float] | np.ndarray,
    patients: Sequence[str] | np.ndarray,
    denominator: Sequence[float] | np.ndarray | None = None,
    repetitions: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean of values, or the ratio of two means, with its interval.

    Args:
        values: (N,), one for each nodule.
        patients: (N,), the patient of each.
        denominator: (N,); with it, the estimate is the mean of `values` divided by the mean of `denominator`.
        repetitions: number of bootstrap draws.
        seed: of the draws.

    Returns:
        The estimate. One patient has no interval, so NaN.

    Raises:
        ValueError: for lengths that differ, or no values.
    """
    values, patients = np.asarray(values, dtype=np.float64), np.asarray(patients)
    divisor = np.ones(len(values)) if denominator is None else np.asarray(denominator, dtype=np.float64)
    if not len(values) or len(values) != len(patients) or len(values) != len(divisor):
        raise ValueError(
            f"`patients` has {len(patients)} entries and `values` {len(values)}, "
            "but the same number, at least 1, is needed."
        )
    patient_index, counts = draw_patients(patients, repetitions, seed)
    value_sums, divisor_sums = np.bincount(patient_index, values), np.bincount(patient_index, divisor)
    draws = (counts @ value_sums) / (counts @ divisor_sums)
    return {"mean": float(values.sum() / divisor.sum()), "interval": _interval(draws, counts.shape[1])}


def patient_bootstrap_of(
    statistic: Callable[..., float],
    patients: Sequence[str] | np.ndarray,
    *columns: Sequence[float] | np.ndarray,
    repetitions: int = 500,
    seed: int = 0,
) -> Estimate:
    """Any statistic with its interval.

    Args:
        statistic: function of the columns, drawn anew for each repetition; it may be NaN for some draws.
        patients: (N,), the patient of each nodule.
        *columns: (N, ...) each, what the statistic is computed from.
        repetitions: number of bootstrap draws.
        seed: of the draws.
    """
    arrays = [np.asarray(column) for column in columns]
    patient_index, counts = draw_patients(np.asarray(patients), repetitions, seed)
    rows = np.arange(len(patient_index))
    draws = []
    for patient_counts in counts:
        drawn = np.repeat(rows, patient_counts[patient_index])
        draws.append(statistic(*(array[drawn] for array in arrays)))
    return {"mean": float(statistic(*arrays)), "interval": _interval(np.array(draws), counts.shape[1])}


def auc_bootstrap(
    scores: np.ndarray,
    positive: np.ndarray,
    patients: np.ndarray,
    minus_scores: np.ndarray | None = None,
    repetitions: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Area under the ROC curve, mean over runs, with its interval.

    Args:
        scores: (R, N) or (N,), of R runs (training seeds) on N nodules.
        positive: (N,), boolean.
        patients: (N,), the patient of each nodule.
        minus_scores: (R', N), scores of another classifier on the same nodules; with them, the estimate is the
            difference of the two areas.
        repetitions: number of bootstrap draws. Draws with nodules of one class only are left out.
        seed: of the draws.

    Raises:
        ValueError: for shapes that do not agree, or nodules of one class only.
    """
    scores, positive, patients = np.atleast_2d(scores), np.asarray(positive, dtype=bool), np.asarray(patients)
    shapes_agree = scores.shape[1] == len(positive) == len(patients)
    if not shapes_agree or positive.all() or not positive.any():
        shapes = f"{scores.shape}, {positive.shape} and {patients.shape}"
        raise ValueError(
            f"`scores`, `positive` and `patients` have the shapes {shapes}, "
            "but (R, N), (N,) and (N,) of both classes are needed."
        )
    wins = _pairwise_wins(scores, positive)
    if minus_scores is not None:
        wins = wins - _pairwise_wins(np.atleast_2d(minus_scores), positive)
    patient_index, counts = draw_patients(patients, repetitions, seed)
    nodule_counts = counts[:, patient_index]
    positive_counts, negative_counts = nodule_counts[:, positive], nodule_counts[:, ~positive]
    pairs = positive_counts.sum(axis=1) * negative_counts.sum(axis=1)
    summed = ((positive_counts @ wins) * negative_counts).sum(axis=1)
    areas = summed[pairs > 0] / pairs[pairs > 0]
    return {"mean": float(wins.mean()), "interval": _interval(areas, counts.shape[1])}


def _pairwise_wins(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(positives, negatives): how often, over runs, the positive nodule has the higher score; a tie counts half."""
    margins = scores[:, positive, None] - scores[:, None, ~positive]
    return ((margins > 0) + 0.5 * (margins == 0)).mean(axis=0)
