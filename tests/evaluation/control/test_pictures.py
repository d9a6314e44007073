"""Pictures that fit on a page."""

from dataclasses import replace

import numpy as np
import pytest

from lsdm_diffusers.evaluation.control.arms import REAL, planned_arms
from lsdm_diffusers.evaluation.control.pictures import PAGE, controls_picture, ladder_picture

SCALES = [0.5, 1, 2, 4, 8, 16, 32]


@pytest.fixture
def pictured(results):
    """The results with crops of every arm that the script's defaults sample."""
    arms = planned_arms(SCALES, [8], 16, with_shuffled=True)
    crops = {arm: np.full((12, 64, 64), -800.0) for arm in [REAL, *arms]}
    areas = {arm: np.ones(12) for arm in crops}
    nodules = replace(results.nodules, crops=crops)
    return replace(results, nodules=nodules, measurements={"area_px": areas}, feature_scale=8, sham_scale=16)


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_the_ladder_shows_three_scales_on_either_side(pictured):
    figure = ladder_picture(pictured, 2)
    benign, malignant = ([f"{kind}\ns = {s}" for s in ("0.5", "4", "32")] for kind in ("benign", "malignant"))
    assert titles(figure) == ["map", "real", *reversed(benign), "unguided", *malignant]
    assert len(figure.axes) == 2 * 9
    assert figure.get_figwidth() <= 1.1 * PAGE


def test_the_controls_show_texture_sham_and_shuffled(pictured):
    figure = controls_picture(pictured, 3)
    assert len(titles(figure)) <= 9
    assert {"texture 1\ns = 8", "sham -\ns = 16", "shuffled\nmalignant\ns = 16"} <= set(titles(figure))


def test_few_scales_are_all_shown_once(pictured):
    areas = {arm: values for arm, values in pictured.measurements["area_px"].items() if arm.scale in (0, 4)}
    assert len(titles(ladder_picture(replace(pictured, measurements={"area_px": areas}), 1))) == 5
