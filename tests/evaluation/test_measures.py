"""Measures of nodules against closed forms: discs, stars, ramps, steps."""

import numpy as np
import pytest

from lsdm_diffusers.evaluation.measures import (
    RING_NAMES,
    change_by_distance,
    nodule_measures,
    nodule_tissue,
    seam_energy,
)

Y, X = np.mgrid[:64, :64] - 32.0
RADIUS = np.hypot(Y, X)


def disc(radius, inside=0.0, outside=-850.0, ramp=1.0):
    """A disc in HU whose edge falls linearly over `ramp` pixels, half way at `radius`."""
    return outside + (inside - outside) * np.clip(0.5 + (radius - RADIUS) / ramp, 0, 1)


@pytest.mark.parametrize("spacing", [0.5, 0.8])
@pytest.mark.parametrize("radius", [6.0, 12.0])
def test_a_disc(radius, spacing):
    drawn = radius - 1 > RADIUS
    measures = nodule_measures(disc(radius), drawn, spacing)
    assert measures["area_mm2"] == pytest.approx(np.pi * (radius * spacing) ** 2, rel=0.05)
    assert measures["mean_hu"] == pytest.approx(0, abs=1) and measures["spread_hu"] == pytest.approx(0, abs=1)
    assert measures["circularity"] == pytest.approx(1, abs=0.06) and measures["solidity"] == pytest.approx(1, abs=0.06)


def test_a_star_is_neither_round_nor_solid():
    angle = np.arctan2(Y, X)
    star = np.where(12 * (1 + 0.45 * np.cos(7 * angle)) > RADIUS, 0.0, -850.0)
    round_one, spiked = nodule_measures(disc(12.0), RADIUS < 12, 0.7), nodule_measures(star, RADIUS < 12, 0.7)
    assert spiked["circularity"] < 0.6 * round_one["circularity"] and spiked["solidity"] < 0.85 * round_one["solidity"]


def test_the_margin_is_the_slope_of_a_ramp():
    """850 HU over 10 pixels of 0.7 mm; a sharper edge of the same disc is steeper, a denser disc too."""
    soft = nodule_measures(disc(12.0, ramp=10), RADIUS < 12, 0.7)["margin_hu_per_mm"]
    assert soft == pytest.approx(850 / 10 / 0.7, rel=0.03)
    assert nodule_measures(disc(12.0, ramp=4), RADIUS < 12, 0.7)["margin_hu_per_mm"] == pytest.approx(
        850 / 4 / 0.7, rel=0.15
    )
    assert nodule_measures(disc(12.0, inside=850.0, ramp=10), RADIUS < 12, 0.7)["margin_hu_per_mm"] > 1.8 * soft


def test_tissue_far_from_the_drawn_nodule_does_not_count():
    hu, drawn = disc(5.0), RADIUS < 5
    alone = nodule_measures(hu, drawn, 0.7)
    hu[RADIUS > 14] = 0
    assert nodule_measures(hu, drawn, 0.7) == alone


@pytest.mark.parametrize(("spacing", "reach"), [(0.5, 8), (0.7, 6), (1.0, 4)])
def test_the_reach_is_in_millimetres(spacing, reach):
    """4.2 mm around the nodule, whose outermost pixels are 4 pixels from its middle."""
    tissue = nodule_tissue(np.zeros((64, 64)), RADIUS < 5, spacing)
    assert tissue[32].sum() == tissue[:, 32].sum() == 2 * (4 + reach) + 1


def test_a_missing_nodule_has_no_shape():
    measures = nodule_measures(np.full((64, 64), -850.0), RADIUS < 5, 0.7)
    assert measures["area_mm2"] == 0 and measures["mean_hu"] == -850
    assert np.isnan([measures["circularity"], measures["solidity"], measures["margin_hu_per_mm"]]).all()
    with pytest.raises(ValueError, match="`drawn` has the shape .* and 0 pixels"):
        nodule_measures(disc(5.0), RADIUS < 0, 0.7)


def test_change_is_averaged_by_its_distance():
    drawn = RADIUS < 3
    distance = np.full((64, 64), 0.0)
    for ring, (low, high) in enumerate(((-1, 0), (0, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 99))):
        nearest = np.min([np.hypot(Y - y, X - x) for y, x in zip(Y[drawn], X[drawn], strict=True)], axis=0)
        distance[(nearest > low) & (nearest <= high)] = ring
    np.testing.assert_allclose(change_by_distance(-distance, drawn), range(7))
    near = change_by_distance(distance[26:38, 26:38], drawn[26:38, 26:38])
    assert len(near) == len(RING_NAMES) and np.isnan(near[-1]) and np.isfinite(near[:4]).all()


def test_a_seam_is_a_step_at_the_edge_only():
    box = (16, 10, 48, 42)
    pasted = np.zeros((64, 64))
    pasted[16:48, 10:42] = 5
    assert seam_energy(pasted, box) == (25, 0)
    smooth = 3 * Y + 3 * X
    assert seam_energy(smooth, box) == pytest.approx((9, 9))
    assert seam_energy(pasted[16:48, 10:42], (0, 0, 32, 32)) == pytest.approx((np.nan, np.nan), nan_ok=True)
    assert seam_energy(pasted[16:], (0, 10, 32, 42)) == (25, 0)  # at the border of the image
