"""Histograms of HU and their distances."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from lsdm_diffusers.evaluation.control.hu_histograms import (
    BIN_EDGES,
    BIN_WIDTH,
    hu_counts,
    hu_wasserstein,
    outside_three_deviations,
)


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    return generator.normal(-300, 100, 5000), generator.normal(-100, 150, 5000)


def test_distance_of_histograms_is_that_of_the_samples(samples):
    counts = [np.histogram(values, BIN_EDGES)[0] for values in samples]
    assert hu_wasserstein(*counts) == pytest.approx(wasserstein_distance(*samples), abs=BIN_WIDTH / 2)
    assert hu_wasserstein(counts[0], 7 * counts[0]) == 0
    assert np.isnan(hu_wasserstein(counts[0], 0 * counts[0]))


def test_three_deviations_are_those_of_the_samples(samples):
    values = samples[0]
    beyond = outside_three_deviations(np.histogram(values, BIN_EDGES)[0])
    middle = (BIN_EDGES[1:] + BIN_EDGES[:-1]) / 2
    np.testing.assert_array_equal(beyond, np.abs(middle - values.mean()) > 3 * values.std())


def test_regions_share_the_crop():
    drawn = np.zeros((1, 64, 64), dtype=bool)
    drawn[0, 30:34, 30:34] = True
    regions = hu_counts(np.where(drawn, 40, -850), drawn)
    assert sum(counts.sum() for counts in regions.values()) == 64 * 64
    assert regions["nodule"].sum() == 16
    assert regions["nodule"][0, np.searchsorted(BIN_EDGES, 40, side="right") - 1] == 16
