"""Estimates of what was measured."""

import numpy as np

from lsdm_diffusers.evaluation.control.arms import UNGUIDED, Arm, ArmKind

from .conftest import BENIGN, MALIGNANT


def test_a_difference_of_paired_arms_has_no_noise(results):
    assert results.gain("judge texture", MALIGNANT) == {"mean": 0, "interval": [0, 0]}
    assert results.estimate("area_px", BENIGN, UNGUIDED) == {"mean": -10, "interval": [-10, -10]}


def test_what_is_not_measured_is_left_out(results):
    results.measurements["area_px"][BENIGN] = np.where(np.arange(12) < 6, 4.0, np.nan)
    assert results.estimate("area_px", BENIGN)["mean"] == 4
    results.measurements["area_px"][BENIGN] = np.full(12, np.nan)
    assert np.isnan(results.estimate("area_px", BENIGN)["mean"])


def test_gains_in_units_of_a_constant_measure_are_undefined(results):
    results.real_measurements["area_px"] = np.ones(8)
    assert np.isnan(results.gain("area_px", BENIGN)["mean"])


def test_true_and_opposite_arms_go_by_the_rating(results):
    area, malignant = results.measurements["area_px"], np.arange(12) % 2 == 1
    true, opposite = (area[Arm(kind, "malignancy", None, 1)] for kind in (ArmKind.TRUE, ArmKind.OPPOSITE))
    np.testing.assert_array_equal(true, np.where(malignant, 60, 40))
    np.testing.assert_array_equal(opposite, np.where(malignant, 40, 60))
