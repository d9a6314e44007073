"""The judge of nodules: it learns what descriptors say, and judges no nodule by models that saw its patient."""

import numpy as np
import pytest

from lsdm_diffusers.evaluation.agreement import rating_agreement
from lsdm_diffusers.evaluation.judge import NoduleJudge
from lsdm_diffusers.nodule_features import NODULE_FEATURES

PER_PATIENT, PATIENTS, NETWORK_FEATURES, MEASURES = 4, 60, 20, 6


def nodules(informative=True):
    """Descriptors, ratings and patients; the nodules of a patient have one rating.

    The descriptors depend on the rating, or, if they are not informative, on the patient alone.
    """
    generator = np.random.default_rng(0)
    patients = np.repeat([f"p{number}" for number in range(PATIENTS)], PER_PATIENT)
    rating = np.repeat(generator.integers(1, 6, PATIENTS), PER_PATIENT).astype(float)
    by_patient = generator.standard_normal((PATIENTS, NETWORK_FEATURES)) * 10
    descriptors = generator.standard_normal((len(patients), MEASURES + NETWORK_FEATURES)) * 0.3
    descriptors[:, MEASURES:] += rating[:, None] if informative else np.repeat(by_patient, PER_PATIENT, axis=0)
    descriptors[:, 0] = 50  # mm²
    return descriptors, dict.fromkeys(NODULE_FEATURES, rating), patients


def test_it_learns_what_descriptors_say():
    descriptors, ratings, patients = nodules()
    scores = NoduleJudge(descriptors, ratings, patients).score(descriptors, patients)
    assert rating_agreement(scores["malignancy"], ratings["malignancy"], "classification")["auc_ge3"] > 0.95
    assert rating_agreement(scores["texture"], ratings["texture"], "regression")["spearman"] > 0.9


def test_no_nodule_is_judged_by_models_of_its_patient():
    """Descriptors that name the patient and nothing else are learnt by heart, and say nothing about other patients."""
    descriptors, ratings, patients = nodules(informative=False)
    judge = NoduleJudge(descriptors, ratings, patients)
    unseen = judge.score(descriptors, patients)["malignancy"]
    assert rating_agreement(unseen, ratings["malignancy"], "classification")["auc_ge3"] < 0.7
    judge.fold_by_patient = {
        patient: (fold + 1) % len(judge.models) for patient, fold in judge.fold_by_patient.items()
    }
    seen = judge.score(descriptors, patients)["malignancy"]
    assert rating_agreement(seen, ratings["malignancy"], "classification")["auc_ge3"] > 0.8


def test_an_unknown_patient_gets_the_mean_of_all_models():
    descriptors, ratings, patients = nodules()
    judge = NoduleJudge(descriptors, ratings, patients)
    fold_patients = [
        next(patient for patient, patient_fold in judge.fold_by_patient.items() if patient_fold == fold)
        for fold in range(len(judge.models))
    ]
    by_fold = judge.score(np.repeat(descriptors[:1], len(fold_patients), axis=0), fold_patients)["texture"]
    assert judge.score(descriptors[:1], ["stranger"])["texture"] == pytest.approx(by_fold.mean())


def test_missing_shapes_are_filled():
    descriptors, ratings, patients = nodules()
    judge = NoduleJudge(descriptors, ratings, patients)
    descriptors[:3, 3:6] = np.nan  # nodules that are not in the image
    assert all(np.isfinite(scores).all() for scores in judge.score(descriptors, patients).values())


def test_wrong_input_is_named():
    descriptors, ratings, patients = nodules()
    with pytest.raises(ValueError, match="`patients` has 1 patient, but at least 2"):
        NoduleJudge(descriptors, ratings, np.full(len(patients), "p"))
    with pytest.raises(ValueError, match="one class of malignancy"):
        NoduleJudge(descriptors, dict.fromkeys(NODULE_FEATURES, np.ones(len(patients))), patients)
