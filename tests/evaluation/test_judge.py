"""The judge of nodules: closed forms of its figures, and that no nodule is judged by what saw its patient."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from lsdm_diffusers.evaluation.agreement import (
    area_under_curve,
    calibration_error,
    rank_correlation,
    rating_agreement,
    readers_agreement,
)
from lsdm_diffusers.evaluation.judge import NoduleJudge
from lsdm_diffusers.nodule_features import NODULE_FEATURES


def nodules(per_patient=4, number=60, informative=True, seed=0):
    """Descriptors that tell the rating, or tell the patient alone; a rating a patient."""
    generator = np.random.default_rng(seed)
    patients = np.repeat([f"p{i}" for i in range(number)], per_patient)
    rating = np.repeat(generator.integers(1, 6, number), per_patient).astype(float)
    told = rating if informative else np.repeat(generator.standard_normal(number) * 10, per_patient)
    descriptors = generator.standard_normal((len(patients), 26)) * 0.3
    descriptors[:, 6:] += (
        told[:, None] if informative else np.repeat(generator.standard_normal((number, 20)) * 10, per_patient, axis=0)
    )
    descriptors[:, 0] = 50
    return descriptors, dict.fromkeys(NODULE_FEATURES, rating), patients


def test_it_learns_what_descriptors_tell():
    descriptors, ratings, patients = nodules()
    scores = NoduleJudge(descriptors, ratings, patients).score(descriptors, patients)
    assert rating_agreement(scores["malignancy"], ratings["malignancy"], "classification")["auc_ge3"] > 0.95
    assert rating_agreement(scores["texture"], ratings["texture"], "regression")["spearman"] > 0.9


def test_no_nodule_is_judged_by_models_of_its_patient():
    """Descriptors that name the patient and nothing else are learnt by heart, and tell nothing of patients that were not seen."""
    descriptors, ratings, patients = nodules(informative=False)
    judge = NoduleJudge(descriptors, ratings, patients)
    own = judge.score(descriptors, patients)["malignancy"]
    assert rating_agreement(own, ratings["malignancy"], "classification")["auc_ge3"] < 0.7
    judge.fold_of = {
        patient: (fold + 1) % len(judge.models) for patient, fold in judge.fold_of.items()
    }  # models that did see them
    seen = judge.score(descriptors, patients)["malignancy"]
    assert rating_agreement(seen, ratings["malignancy"], "classification")["auc_ge3"] > 0.8


def test_an_unknown_patient_gets_the_mean_of_all_models():
    descriptors, ratings, patients = nodules()
    judge = NoduleJudge(descriptors, ratings, patients)
    one = np.repeat(descriptors[:1], 5, axis=0)
    of_folds = judge.score(one, [next(p for p, fold in judge.fold_of.items() if fold == k) for k in range(5)])[
        "texture"
    ]
    assert judge.score(descriptors[:1], ["stranger"])["texture"] == pytest.approx(of_folds.mean())


def test_missing_shapes_are_filled():
    descriptors, ratings, patients = nodules()
    judge = NoduleJudge(descriptors, ratings, patients)
    descriptors[:3, 3:6] = np.nan  # a nodule that is not there
    assert all(np.isfinite(scores).all() for scores in judge.score(descriptors, patients).values())


def test_wrong_input_is_named():
    descriptors, ratings, patients = nodules()
    with pytest.raises(ValueError, match="`patients` has 1 patient, but at least 2"):
        NoduleJudge(descriptors, ratings, np.full(len(patients), "p"))
    with pytest.raises(ValueError, match="one class of malignancy"):
        NoduleJudge(descriptors, dict.fromkeys(NODULE_FEATURES, np.ones(len(patients))), patients)
    with pytest.raises(ValueError, match="no nodule with two readers"):
        readers_agreement([[3]], "texture")


def test_figures_of_agreement():
    ratings = np.array([1, 2, 3, 4, 5.0])
    perfect = rating_agreement(np.array([-9, -9, 9, 9, 9.0]), ratings, "classification")
    assert perfect["auc_ge3"] == perfect["auc_ge4"] == perfect["accuracy_ge3"] == 1 and perfect["ece"] < 1e-3
    assert rating_agreement(-ratings, ratings, "classification")["auc_ge3"] == 0
    off_by_one = rating_agreement(ratings + 1, ratings, "regression")
    assert off_by_one == {"spearman": pytest.approx(1), "mae": 1, "ece": 1}
    assert np.isnan(rating_agreement(ratings, np.full(5, 3.0), "regression")["spearman"])
    # half of those called 80% are malignant: off by 0.3
    assert calibration_error(np.full(10, 0.8), np.arange(10) % 2, 0, 1) == pytest.approx(0.3)


def test_ranks_agree_with_the_libraries():
    generator = np.random.default_rng(0)
    positive, scores = generator.random(80) < 0.3, generator.integers(0, 9, 80)  # with ties
    assert area_under_curve(positive, scores) == pytest.approx(roc_auc_score(positive, scores))
    assert rank_correlation(positive, scores) == pytest.approx(spearmanr(positive, scores)[0])
    assert np.isnan(area_under_curve(positive[positive], scores[positive]))


def test_readers_are_held_against_each_other():
    alike = readers_agreement([[1, 1], [3, 3, 3], [5, 5], [2]], "texture")
    assert alike == {"spearman": pytest.approx(1), "mae": 0, "deviation": 0, "nodules": 3}
    apart = readers_agreement([[1, 3], [3, 1]], "lobulation")
    assert apart["deviation"] == pytest.approx(2**0.5) and apart["mae"] == 2 and apart["spearman"] == pytest.approx(-1)
    assert readers_agreement([[1, 2], [5, 4], [2, 2]], "malignancy")["auc_ge3"] == 1
