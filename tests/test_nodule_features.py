"""Ratings of nodules: rounding, one rating for all readers, what is malignant, and the classifiers' targets."""

import numpy as np
import pytest

from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.nodule_features import (
    BENIGN_CLASS,
    CLEARLY_MALIGNANT_RATING,
    INDETERMINATE_RATING,
    MALIGNANT_CLASS,
    NODULE_FEATURES,
    aggregate_rating,
    feature_target,
    is_clear,
    is_malignant,
    malignancy_rating,
    whole_rating,
)


@pytest.mark.parametrize(
    ("rating", "whole"), [(1, 1), (1.49, 1), (1.5, 2), (2.49, 2), (2.5, 3), (3.4, 3), (3.5, 4), (4.5, 5), (5, 5)]
)
def test_ratings_are_rounded_halves_up(rating, whole):
    assert whole_rating(rating) == whole
    assert whole_rating(np.float32(rating)) == whole


def test_arrays_of_ratings_keep_their_shape():
    ratings = np.array([[2.5, 3.4], [np.nan, 1]])
    np.testing.assert_array_equal(whole_rating(ratings), [[3, 3], [np.nan, 1]])
    np.testing.assert_array_equal(is_malignant(ratings), [[True, True], [False, False]])


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [([1], 1), ([2, 3], 3), ([3, 4], 4), ([2, 2, 3], 2), ([5, 5, 5, 4], 5), ([1, 2, 3, 4], 3), ([1, 5], 3)],
)
def test_ratings_are_aggregated_by_their_median_halves_up(ratings, expected):
    assert aggregate_rating(ratings) == expected


@pytest.mark.parametrize("ratings", [[], [0, 3], [6]])
def test_ratings_outside_the_scale_are_refused(ratings):
    with pytest.raises(ValueError, match="1..5"):
        aggregate_rating(ratings)


@pytest.mark.parametrize(
    ("rating", "malignant", "clear", "label"),
    [
        (1, False, True, SemanticLabel.NODULE_BENIGN),
        (2, False, True, SemanticLabel.NODULE_BENIGN),
        (2.4, False, True, SemanticLabel.NODULE_BENIGN),
        (2.5, True, False, SemanticLabel.NODULE_INDETERMINATE),
        (3, True, False, SemanticLabel.NODULE_INDETERMINATE),
        (3.4, True, False, SemanticLabel.NODULE_INDETERMINATE),
        (3.5, True, True, SemanticLabel.NODULE_MALIGNANT),
        (4, True, True, SemanticLabel.NODULE_MALIGNANT),
        (5, True, True, SemanticLabel.NODULE_MALIGNANT),
    ],
)
def test_map_classifier_and_evaluation_agree_on_what_is_malignant(rating, malignant, clear, label):
    assert is_malignant(rating) == malignant and is_clear(rating) == clear
    assert feature_target("malignancy", rating) == (MALIGNANT_CLASS if malignant else BENIGN_CLASS)
    assert SemanticLabel.for_malignancy(rating) == label


def test_words_stand_for_ratings_that_are_clear():
    assert malignancy_rating("benign") < INDETERMINATE_RATING
    assert malignancy_rating("malignant") == CLEARLY_MALIGNANT_RATING
    assert is_clear([malignancy_rating(word) for word in ("benign", "malignant")]).all()
    assert feature_target("malignancy", "benign") == BENIGN_CLASS
    assert feature_target("malignancy", "malignant") == MALIGNANT_CLASS


@pytest.mark.parametrize("rating", [1, 2.5, np.float32(4.5), np.int64(5)])
def test_a_rating_stays_what_it_is(rating):
    assert malignancy_rating(rating) == rating
    for feature in NODULE_FEATURES[1:]:
        assert feature_target(feature, rating) == rating


@pytest.mark.parametrize(
    "value", [0, 0.99, 5.01, -1, float("nan"), float("inf"), None, True, "", "Malignant", "4", [4], np.array([4, 4])]
)
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match='`malignancy` is .*"benign", "malignant" or a rating 1..5'):
        malignancy_rating(value)
    with pytest.raises(ValueError, match='malignancy = .*a rating 1..5 or "benign" or "malignant" is needed'):
        feature_target("malignancy", value)
    with pytest.raises(ValueError, match="texture = .*a rating 1..5 is needed"):
        feature_target("texture", value)


def test_words_belong_to_malignancy_alone():
    with pytest.raises(ValueError, match="lobulation = 'malignant', but a rating 1..5 is needed"):
        feature_target("lobulation", "malignant")


def test_another_feature_is_named():
    with pytest.raises(ValueError, match="key 'calcification', but the features are malignancy, lobulation"):
        feature_target("calcification", 3)
