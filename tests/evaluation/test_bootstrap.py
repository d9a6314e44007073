"""Bootstraps over patients: coverage, closed forms, and other libraries."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from lsdm_diffusers.evaluation.bootstrap import auc_bootstrap, draw_patients, patient_bootstrap, patient_bootstrap_of


def test_whole_patients_are_drawn_with_replacement():
    patient_index, counts = draw_patients(np.array(["b", "a", "b", "c"]), repetitions=3000, seed=0)
    assert patient_index.tolist() == [1, 0, 1, 2]
    assert counts.shape == (3000, 3) and (counts.sum(axis=1) == 3).all()
    # each patient is drawn as often as the others: three draws with the chance 1/3
    assert counts.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.06)
    assert counts.var(axis=0) == pytest.approx([2 / 3] * 3, abs=0.06)


def test_intervals_of_the_mean_cover_it():
    """Nodules of a patient share most of their deviation.

    So intervals over patients hold the true mean, and intervals over nodules would be too narrow.
    """
    generator, covered, covered_by_nodules = np.random.default_rng(0), 0, 0
    for repeat in range(200):
        patients = np.repeat(np.arange(40), 5)
        values = generator.standard_normal(40)[patients] + 0.2 * generator.standard_normal(200)
        low, high = patient_bootstrap(values, patients, repetitions=400, seed=repeat)["interval"]
        covered += low <= 0 <= high
        low, high = patient_bootstrap(values, np.arange(200), repetitions=400, seed=repeat)["interval"]
        covered_by_nodules += low <= 0 <= high
    assert 0.89 <= covered / 200 <= 0.99 and covered_by_nodules / 200 < 0.8


def test_a_constant_ratio_has_no_spread():
    denominator = np.random.default_rng(0).uniform(1, 2, 60)
    estimate = patient_bootstrap(0.5 * denominator, np.repeat(np.arange(20), 3), denominator=denominator)
    assert estimate == {"mean": pytest.approx(0.5), "interval": pytest.approx([0.5, 0.5])}


def test_any_statistic_agrees_with_the_mean():
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 3)
    values = generator.standard_normal(20)[patients]
    mean, statistic = patient_bootstrap(values, patients), patient_bootstrap_of(np.mean, patients, values)
    assert statistic["mean"] == pytest.approx(mean["mean"])
    assert statistic["interval"] == pytest.approx(mean["interval"], abs=0.1)


def test_draws_without_a_figure_are_left_out():
    patients = np.repeat(np.arange(20), 3)
    estimate = patient_bootstrap_of(
        lambda column: np.nan if (column == 0).any() else column.mean(), patients, patients
    )
    assert np.isnan(estimate["mean"]) and np.isfinite(estimate["interval"]).all()


def test_one_patient_has_no_interval():
    patients, values = np.full(4, "p"), np.arange(4.0)
    estimates = [
        patient_bootstrap(values, patients),
        patient_bootstrap_of(np.mean, patients, values),
        auc_bootstrap(values, values > 1, patients),
    ]
    assert [estimate["mean"] for estimate in estimates] == [1.5, 1.5, 1.0]
    assert np.isnan([estimate["interval"] for estimate in estimates]).all()


def test_the_area_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    positive, patients = generator.random(60) < 0.4, generator.integers(20, size=60)
    runs = np.round(generator.normal(positive, 1, size=(3, 60)), 1)  # with ties
    estimate = auc_bootstrap(runs, positive, patients)
    assert estimate["mean"] == pytest.approx(np.mean([roc_auc_score(positive, scores) for scores in runs]))
    assert estimate["interval"][0] < estimate["mean"] < estimate["interval"][1]


def test_the_difference_of_areas_pairs_the_nodules():
    generator = np.random.default_rng(0)
    positive, patients = generator.random(60) < 0.4, generator.integers(20, size=60)
    scores = generator.normal(positive, 1, size=(3, 60))
    assert auc_bootstrap(scores, positive, patients, minus_scores=scores) == {"mean": 0.0, "interval": [0.0, 0.0]}


def test_intervals_of_the_area_cover_it():
    generator, covered = np.random.default_rng(1), 0
    patients = np.repeat(np.arange(40), 2)
    for seed in range(100):
        positive = np.repeat(generator.random(40) < 0.5, 2)
        shared_by_patient = np.repeat(generator.normal(size=40), 2)
        scores = generator.normal(positive, 1) + 0.5 * shared_by_patient
        low, high = auc_bootstrap(scores, positive, patients, repetitions=400, seed=seed)["interval"]
        covered += low <= norm.cdf(1 / np.sqrt(2 * 1.25)) <= high
    assert 88 <= covered


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="`patients` has 2 entries and `values` 3"):
        patient_bootstrap(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="of both classes are needed"):
        auc_bootstrap(np.zeros((1, 4)), np.ones(4, dtype=bool), np.arange(4))
