"""Tables of what the judge and the guiding classifiers see: how far to trust them, and what guidance gains by each."""

import math
from collections.abc import Callable

import numpy as np

from ...nodule_features import INDETERMINATE_RATING, NODULE_FEATURES, is_clear, is_malignant
from ..agreement import area_under_curve, rank_correlation, rating_agreement, readers_agreement
from ..bootstrap import patient_bootstrap, patient_bootstrap_of
from ..measures import MEASURES
from .arms import METHOD_KINDS, REAL, UNGUIDED, Arm, ArmKind, low_and_high
from .measurements import MEASURE_TITLES
from .results import ControlResults
from .table import Cell, Row, Table

SCORERS = {
    "judge": "judge",
    "decoded judge": "judge, through the autoencoder",
    "classifier": "guiding classifier",
}
NOT_IN_THE_DATA = "not in the data"


def ceiling_table(results: ControlResults) -> Table:
    """How well the judge, the guiding classifiers and single readers tell the ratings of real nodules."""
    rows: dict[str, Row] = {}
    all_nodules = np.ones(len(results.real.patients), dtype=bool)
    for feature in NODULE_FEATURES:
        if feature == "malignancy":
            clear = is_clear(results.real.ratings[feature])
            rows["malignancy, AUC ≥ 3"] = _ceiling_row(results, feature, "auc_ge3", area_under_curve, all_nodules)
            rows["malignancy, AUC ≥ 4"] = _ceiling_row(results, feature, "auc_ge4", area_under_curve, clear)
        else:
            rows[f"{feature}, Spearman"] = _ceiling_row(results, feature, "spearman", rank_correlation, all_nodules)
    caption = (
        f"{results.real_size}, each judged by models fitted without its patient. Through the autoencoder: the same "
        "crops encoded and decoded, which is as near as sampled ones can come. Calibration error of malignancy in "
        "probability, of the other features in rating. AUC ≥ 4 leaves out the nodules rated 3."
    )
    return Table("Ceiling of the judges on real nodules", caption, rows)


def _ceiling_row(
    results: ControlResults,
    feature: str,
    agreement: str,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    chosen: np.ndarray,
) -> Row:
    """One kind of agreement with the ratings of the chosen real nodules, for each scorer and for single readers."""
    real = results.real
    ratings = real.ratings[feature]
    truth = is_malignant(ratings) if feature == "malignancy" else ratings
    objective = "classification" if feature == "malignancy" else "regression"
    row: dict[str, Cell] = {}
    for scorer, title in SCORERS.items():
        scores = results.real_measurements[f"{scorer} {feature}"]
        row[title] = patient_bootstrap_of(statistic, real.patients[chosen], truth[chosen], scores[chosen])
        row[f"calibration error, {title}"] = rating_agreement(scores, ratings, objective)["ece"]
    reader_ratings = real.reader_ratings[feature]
    several = any(len(of_nodule) > 1 for of_nodule in reader_ratings)
    readers = readers_agreement(reader_ratings, feature) if several else {}
    row["one reader by the others"] = readers.get(agreement, NOT_IN_THE_DATA)
    row["deviation between readers"] = readers.get("deviation", NOT_IN_THE_DATA)
    return row


def own_rating_table(results: ControlResults) -> Table:
    """How well either scorer tells a nodule's own rating, when it is guided to that rating and away from it."""
    arms = [REAL, UNGUIDED]
    for kind in (ArmKind.TRUE, ArmKind.OPPOSITE):
        arms += [Arm(kind, "malignancy", None, scale) for scale in results.scales("malignancy")]
    rows: dict[str, Row] = {}
    for arm in arms:
        rows[arm.label] = {
            f"AUC, {scorer}": patient_bootstrap_of(
                area_under_curve,
                results.nodules.patients,
                results.malignant,
                results.measurements[f"{scorer} malignancy"][arm],
            )
            for scorer in ("judge", "classifier")
        }
    caption = (
        f"{results.size}. AUC of malignancy ≥ 3 as the drawn nodule was rated: the map alone, then guided to that "
        "class or to the opposite one."
    )
    return Table("Does the image tell the rating it was drawn from?", caption, rows)


def transfer_table(results: ControlResults) -> Table:
    """The judge's gain beside the guiding classifier's, and the ratio of the two."""
    rows: dict[str, Row] = {}
    for feature in NODULE_FEATURES:
        for scale in results.scales(feature):
            low, high = low_and_high(feature, scale)
            gains = {}
            for scorer in ("judge", "classifier"):
                scores = results.measurements[f"{scorer} {feature}"]
                gains[scorer] = (scores[high] - scores[low]) / results.unit(f"{scorer} {feature}")
            ratio = patient_bootstrap(gains["judge"], results.nodules.patients, denominator=gains["classifier"])
            rows[f"{feature}, s = {scale:g}"] = {
                "gain, judge": patient_bootstrap(gains["judge"], results.nodules.patients),
                "gain, classifier": patient_bootstrap(gains["classifier"], results.nodules.patients),
                "transfer ratio": ratio,
            }
    caption = (
        f"{results.size}. Gain: asked for the most minus asked for the least of the feature, in standard deviations "
        "of the real nodules. A ratio of 1: the judge sees all that the guiding classifier sees; 0: the gradient "
        "fooled its classifier."
    )
    return Table("Transfer", caption, rows)


def method_table(results: ControlResults) -> Table:
    """What each guidance method gains by the judge, beside what real nodules of those ratings differ by."""
    rows: dict[str, Row] = {}
    for feature in NODULE_FEATURES:
        agreement, difference = _judge_and_guide(results, feature), _real_difference(results, feature)
        for kind, method in METHOD_KINDS.items():
            for scale in results.scales(feature, kind):
                low, high = low_and_high(feature, scale, kind)
                gain = results.gain(f"judge {feature}", high, low)
                classifier_gain = results.gain(f"classifier {feature}", high, low)
                ratio = gain["mean"] / classifier_gain["mean"]
                row: dict[str, Cell] = {"gain, judge": gain, "real difference": difference}
                row |= {"gain / real": gain["mean"] / difference, "gain, classifier": classifier_gain}
                row |= {"ratio": ratio, "ratio / r": ratio / agreement}
                for pole, arm in (("least", low), ("most", high)):
                    row |= {f"HU, {pole}": results.estimate("mean_hu", arm)["mean"]}
                    row |= {f"Dice, {pole}": results.estimate("nodule_dice", arm)["mean"]}
                rows[f"{feature}, {method}" + (f", s = {scale:g}" if scale else "")] = row
    caption = (
        f"{results.size}. Gain: asked for the most minus asked for the least, in standard deviations of the real "
        "nodules. Real difference: the judge's scores of real nodules rated above 3 minus those rated below, in the "
        "same unit; gain / real of 1 is right. Ratio: judge's gain over the guiding classifier's. r: their "
        "correlation on real nodules, the ratio that a perfect change would have. HU and Dice of the nodule: asked "
        "for the least and for the most; real nodules have "
        f"{np.nanmean(results.real_measurements['mean_hu']):.0f} HU."
    )
    return Table("Guidance methods", caption, rows)


def _judge_and_guide(results: ControlResults, feature: str) -> float:
    """Correlation of the judge's and the guiding classifier's scores on real nodules."""
    judge, guide = (results.real_measurements[f"{scorer} {feature}"] for scorer in ("judge", "classifier"))
    return float(np.corrcoef(judge, guide)[0, 1])


def _real_difference(results: ControlResults, feature: str) -> float:
    """The judge's mean score of real nodules rated above 3 minus that of those below, in standard deviations."""
    ratings, scores = results.real.ratings[feature], results.real_measurements[f"judge {feature}"]
    high, low = scores[ratings > INDETERMINATE_RATING], scores[ratings < INDETERMINATE_RATING]
    if not len(high) or not len(low):
        return math.nan
    return float(high.mean() - low.mean()) / results.unit(f"judge {feature}")


def cross_feature_table(results: ControlResults) -> Table:
    """What the judge and the measures see of every feature when one is guided."""
    columns = {f"judge {feature}": f"judge {feature}" for feature in NODULE_FEATURES}
    columns |= {MEASURE_TITLES[measure]: measure for measure in MEASURES}
    rows: dict[str, Row] = {}
    for feature in NODULE_FEATURES:
        low, high = low_and_high(feature, results.feature_scale)
        rows[f"guide {feature}"] = {title: results.gain(measure, high, low) for title, measure in columns.items()}
    caption = (
        f"{results.size}, s = {results.feature_scale:g}. Asked for the most minus asked for the least, in standard "
        "deviations of the real nodules."
    )
    return Table("Guide one feature, see the others", caption, rows)


def rating_correlations(results: ControlResults) -> np.ndarray:
    """Spearman's correlations of the real nodules' ratings, (4, 4), in the order of `NODULE_FEATURES`."""
    return _correlations([results.real.ratings[feature] for feature in NODULE_FEATURES])


def judge_correlations(results: ControlResults) -> np.ndarray:
    """Spearman's correlations of the judge's scores of the real nodules, (4, 4), in the order of `NODULE_FEATURES`."""
    return _correlations([results.real_measurements[f"judge {feature}"] for feature in NODULE_FEATURES])


def _correlations(columns: list[np.ndarray]) -> np.ndarray:
    return np.array([[rank_correlation(a, b) for b in columns] for a in columns])


def correlations_table(results: ControlResults) -> Table:
    """How the ratings of real nodules go together, and how the judge's scores do."""
    ratings, scores = rating_correlations(results), judge_correlations(results)
    rows: dict[str, Row] = {}
    for number, feature in enumerate(NODULE_FEATURES):
        row = {f"rating: {other}": float(value) for other, value in zip(NODULE_FEATURES, ratings[number], strict=True)}
        row |= {f"judge: {other}": float(value) for other, value in zip(NODULE_FEATURES, scores[number], strict=True)}
        rows[feature] = row
    title = "Correlations (Spearman) of the real ratings, and of the judge's scores"
    return Table(title, f"{results.real_size}.", rows)
