"""Agreement of scores with ratings, and of readers with each other: closed forms and other libraries."""

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

RATINGS = np.array([1, 2, 3, 4, 5.0])


def test_perfect_and_reversed_scores():
    perfect = rating_agreement(np.array([-9, -9, 9, 9, 9.0]), RATINGS, "classification")
    assert perfect["auc_ge3"] == perfect["auc_ge4"] == perfect["accuracy_ge3"] == 1 and perfect["ece"] < 1e-3
    assert rating_agreement(-RATINGS, RATINGS, "classification")["auc_ge3"] == 0


def test_scores_that_are_off_by_one():
    off_by_one = rating_agreement(RATINGS + 1, RATINGS, "regression")
    assert off_by_one == {"spearman": pytest.approx(1), "mae": 1, "ece": 1}
    assert np.isnan(rating_agreement(RATINGS, np.full(5, 3.0), "regression")["spearman"])


def test_the_clear_classes_leave_out_the_indeterminate_nodules():
    scores = np.array([-1.0, -1.0, -9.0, 1.0, 1.0])  # wrong for the nodule rated 3 alone
    figures = rating_agreement(scores, RATINGS, "classification")
    assert figures["auc_ge4"] == 1 and figures["auc_ge3"] == pytest.approx(4 / 6)


def test_calibration_of_a_confident_coin():
    # half of those called 80% are malignant: off by 0.3
    assert calibration_error(np.full(10, 0.8), np.arange(10) % 2, 0, 1) == pytest.approx(0.3)


def test_ranks_agree_with_the_libraries():
    generator = np.random.default_rng(0)
    positive, scores = generator.random(80) < 0.3, generator.integers(0, 9, 80)  # with ties
    assert area_under_curve(positive, scores) == pytest.approx(roc_auc_score(positive, scores))
    assert rank_correlation(positive, scores) == pytest.approx(spearmanr(positive, scores)[0])
    assert np.isnan(area_under_curve(positive[positive], scores[positive]))


def test_readers_are_compared_with_each_other():
    alike = readers_agreement([[1, 1], [3, 3, 3], [5, 5], [2]], "texture")
    assert alike == {"spearman": pytest.approx(1), "mae": 0, "deviation": 0, "nodules": 3}
    apart = readers_agreement([[1, 3], [3, 1]], "lobulation")
    assert apart["deviation"] == pytest.approx(2**0.5) and apart["mae"] == 2 and apart["spearman"] == pytest.approx(-1)
    assert readers_agreement([[1, 2], [5, 4], [2, 2]], "malignancy")["auc_ge3"] == 1
    with pytest.raises(ValueError, match="no nodule with two readers"):
        readers_agreement([[3]], "texture")
