"""Intervals from a bootstrap that draws whole patients, since nodules of one patient are alike."""

import warnings
from collections.abc import Callable

import numpy as np


def patient_bootstrap(
    values: np.ndarray, patients: np.ndarray, over: np.ndarray | None = None, repetitions: int = 2000, seed: int = 0
) -> dict:
    """Mean of `values` (N,) and its 95% interval from a bootstrap that draws whole patients (N,): nodules of one patient are alike.

    With `over` (N,), the mean of `values` divided by that of `over`, both of the same draws.

    Returns:
        {"mean": float, "interval": [low, high]}; one patient has no interval, so NaN.

    Raises:
        ValueError: for lengths that differ, or no values.
    """
    values, patients = np.asarray(values, dtype=np.float64), np.asarray(patients)
    over = np.ones(len(values)) if over is None else np.asarray(over, dtype=np.float64)
    if not len(values) or len(values) != len(patients) or len(values) != len(over):
        raise ValueError(
            f"`patients` has {len(patients)} entries and `values` {len(values)}, but the same number, at least 1, is needed."
        )
    _, of_patient = np.unique(patients, return_inverse=True)
    sums, counts = np.bincount(of_patient, values), np.bincount(of_patient, over)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(repetitions, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1) if len(sums) > 1 else [np.nan]
    return {
        "mean": float(values.sum() / over.sum()),
        "interval": [float(bound) for bound in np.quantile(means, (0.025, 0.975))],
    }


def patient_bootstrap_of(
    statistic: Callable, patients: np.ndarray, *columns: np.ndarray, repetitions: int = 500, seed: int = 0
) -> dict:
    """As `patient_bootstrap`, for any statistic: a function of `columns`, (N,) each, that may be NaN for some draws.

    Returns:
        {"mean": the statistic of all, "interval": [low, high]}.
    """
    columns = [np.asarray(column) for column in columns]
    of_patient = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    generator, values = np.random.default_rng(seed), []
    for _ in range(repetitions):
        rows = np.concatenate([of_patient[i] for i in generator.integers(len(of_patient), size=len(of_patient))])
        values.append(statistic(*(column[rows] for column in columns)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN for every draw
        return {
            "mean": float(statistic(*columns)),
            "interval": [float(bound) for bound in np.nanquantile(values, (0.025, 0.975))],
        }


def auc_bootstrap(
    scores: np.ndarray,
    positive: np.ndarray,
    patients: np.ndarray,
    less: np.ndarray | None = None,
    repetitions: int = 2000,
    seed: int = 0,
) -> dict:
    """Area under the ROC curve, mean over runs, and its 95% interval from a bootstrap that draws whole patients.

    Args:
        scores: (R, N), of R runs (training seeds) on N nodules.
        positive: (N,) boolean.
        patients: (N,).
        less: (R', N) scores of another classifier on the same nodules; then it is the difference of the two areas.

    Returns:
        {"mean": float, "interval": [low, high]}. Repetitions that draw nodules of one class only are left out.

    Raises:
        ValueError: for shapes that do not agree, or one class.
    """
    scores, positive, patients = np.atleast_2d(scores), np.asarray(positive, dtype=bool), np.asarray(patients)
    if scores.shape[1] != len(positive) or len(positive) != len(patients) or positive.all() or not positive.any():
        shapes = f"{scores.shape}, {positive.shape} and {patients.shape}"
        raise ValueError(
            f"`scores`, `positive` and `patients` have the shapes {shapes}, but (R, N), (N,) and (N,) of both classes are needed."
        )

    def wins(
        some,
    ):  # (positives, negatives): how often, over runs, the positive one has the higher score; a tie is half
        margins = some[:, positive, None] - some[:, None, ~positive]
        return ((margins > 0) + 0.5 * (margins == 0)).mean(axis=0)

    table = wins(scores) - (0 if less is None else wins(np.atleast_2d(less)))
    every, patient = np.unique(patients, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(every), np.full(len(every), 1 / len(every)), size=repetitions)[
        :, patient
    ]
    drawn_positive, drawn_negative = drawn[:, positive], drawn[:, ~positive]
    pairs = drawn_positive.sum(axis=1) * drawn_negative.sum(axis=1)
    areas = ((drawn_positive @ table) * drawn_negative).sum(axis=1)[pairs > 0] / pairs[pairs > 0]
    return {"mean": float(table.mean()), "interval": [float(bound) for bound in np.quantile(areas, (0.025, 0.975))]}
