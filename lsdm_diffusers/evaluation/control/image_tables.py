"""Tables of what guidance must not break: the nodule is where the map draws it, its HU look real, the rest stays."""

import math

import numpy as np

from ...nodule_features import is_malignant
from ..bootstrap import patient_bootstrap, patient_bootstrap_of
from ..measures import LUNG_LIMIT_HU, REACH_MM, RING_NAMES
from ..obedience import MISSED_DICE
from .arms import REAL, UNGUIDED, Arm, Pole, arms_by_feature, guided
from .hu_histograms import RIM, hu_counts, hu_wasserstein, outside_three_deviations
from .results import ControlResults
from .table import Cell, Row, Table

OBEDIENCE = {"Dice": "nodule_dice", "diameter error [mm]": "diameter_error_mm", "missed": "missed_nodules"}


def obedience_table(results: ControlResults) -> Table:
    """Whether each arm shows the nodule that the map draws."""
    rows: dict[str, Row] = {}
    for arm in [REAL, UNGUIDED, *arms_by_feature(results.arms)]:
        rows[arm.label] = {title: results.estimate(measure, arm) for title, measure in OBEDIENCE.items()}
    caption = (
        f"{results.size}. Tissue (HU > {LUNG_LIMIT_HU:g}) within {REACH_MM:g} mm against the drawn nodule; missed: "
        f"Dice below {MISSED_DICE:g}. Guidance to benign or malignant is meant to change the size."
    )
    return Table("Obedience to the drawn nodule", caption, rows)


def plausibility_table(results: ControlResults, pole: Pole) -> Table:
    """HU of nodules guided to be benign (LOW) or malignant (HIGH), against real nodules rated so."""
    kind = guided("malignancy", pole, 0).title
    rated = results.malignant if pole is Pole.HIGH else ~results.malignant
    real_malignant = is_malignant(results.real.ratings["malignancy"])
    real_rated = real_malignant if pole is Pole.HIGH else ~real_malignant
    real_counts = hu_counts(results.real.hu[real_rated], results.real.drawn[real_rated])
    reference = {region: counts.sum(axis=0) for region, counts in real_counts.items()}

    scales = results.scales("malignancy")
    rows: dict[str, Row] = {}
    if rated.any():
        rows["real, same place"] = _plausibility_row(results, REAL, rated, reference)
        rows[UNGUIDED.label] = _plausibility_row(results, UNGUIDED, rated, reference)
    for way, chosen in (("true", rated), ("opposite", ~rated)):
        for scale in scales if chosen.any() else []:
            row = _plausibility_row(results, guided("malignancy", pole, scale), chosen, reference)
            rows[f"{way} s={scale:g}"] = row
    caption = (
        f"{int(rated.sum())} nodules rated {kind} and {int((~rated).sum())} of the opposite class, against "
        f"{int(real_rated.sum())} real nodules rated {kind} (of the same patients). Wasserstein-1 of pooled HU in "
        f"the drawn nodule, its rim of {RIM} pixels, and the rest of 64x64; share of pixels beyond mean ± 3 "
        "deviations of the real ones."
    )
    return Table(f"HU of nodules guided to be {kind}", caption, rows)


def _plausibility_row(
    results: ControlResults, arm: Arm, chosen: np.ndarray, reference: dict[str, np.ndarray]
) -> dict[str, Cell]:
    """Distances of the chosen nodules' HU in an arm from the reference histograms, by region."""
    patients = results.nodules.patients[chosen]
    row: dict[str, Cell] = {}
    for region, counts in hu_counts(results.nodules.crops[arm][chosen], results.nodules.drawn[chosen]).items():

        def distance(drawn_counts: np.ndarray, real_counts: np.ndarray = reference[region]) -> float:
            return hu_wasserstein(drawn_counts.sum(axis=0), real_counts)

        beyond = counts @ outside_three_deviations(reference[region])
        row[f"W1 {region} [HU]"] = patient_bootstrap_of(distance, patients, counts)
        row[f"beyond 3σ, {region}"] = patient_bootstrap(beyond, patients, denominator=counts.sum(axis=1))
    return row


def locality_table(results: ControlResults) -> Table:
    """How far from the nodule guidance changes the slice, and whether the classifiers' crop leaves a seam."""
    rows: dict[str, Row] = {}
    for arm in arms_by_feature(results.arms):
        row: dict[str, Cell] = {}
        for ring in RING_NAMES:
            title = ring if ring == "inside" else f"{ring} px"
            row[title] = results.estimate(f"change {ring}", arm)
        across, inside = (results.measurements[name][arm] for name in ("seam", "inside seam"))
        has_seam = np.isfinite(across)
        row["step across the crop's edge / inside"] = patient_bootstrap_of(
            _seam_ratio, results.nodules.patients[has_seam], across[has_seam], inside[has_seam]
        )
        rows[arm.label] = row
    caption = (
        f"{results.size}. Mean |guided - unguided| in HU by the distance from the drawn nodule; root mean square "
        "step of that change across the edge of the classifiers' 64x64 crop over that of the three lines inside: 1 "
        "is no seam."
    )
    return Table("Locality", caption, rows)


def _seam_ratio(across: np.ndarray, inside: np.ndarray) -> float:
    """Root mean square step across the crop's edge over that inside; NaN where guidance changed nothing."""
    return math.sqrt(across.mean() / inside.mean()) if inside.any() else math.nan
