"""Which slices of a scan are taken, and the split of a patient."""

import numpy as np
import pytest

from lsdm_diffusers.data.selection import choose_slices, split_of_patient


def test_slices_with_nodules_come_first_and_the_others_are_spread():
    chosen = choose_slices(100, [40, 41, 42], 0.1)
    assert len(chosen) == len(set(chosen)) == 10
    assert {40, 41, 42} <= set(chosen)
    others = [index for index in chosen if index not in (40, 41, 42)]
    assert max(np.diff([0, *others, 99])) <= 2 * 100 / len(others)
    assert choose_slices(10, range(10), 0.3) == (1, 5, 8)
    assert choose_slices(7, [], 1.0) == tuple(range(7))
    assert len(choose_slices(3, [], 0.1)) == 1


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_a_share_of_slices_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=f"`slice_fraction` is {fraction}"):
        choose_slices(10, [], fraction)


def test_the_split_follows_the_patient_and_the_seed():
    patients = [f"LIDC-IDRI-{number:04d}" for number in range(1, 1013)]
    first = [split_of_patient(patient, 0.03, 0.11) for patient in patients]
    assert first == [split_of_patient(patient, 0.03, 0.11) for patient in patients]
    assert first != [split_of_patient(patient, 0.03, 0.11, seed=1) for patient in patients]
    assert 0.07 < first.count("test") / len(first) < 0.15


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0.2), (0.2, -0.1)])
def test_shares_of_the_split_outside_their_range_are_refused(fractions):
    message = f"`validation_fraction` is {fractions[0]} and `test_fraction` {fractions[1]}"
    with pytest.raises(ValueError, match=message):
        split_of_patient("x", *fractions)
