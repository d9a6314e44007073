"""Obedience of slices to their maps: closed forms of a nodule in the lung, and densities by label."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from lsdm_diffusers.evaluation.measures import REACH_MM
from lsdm_diffusers.evaluation.obedience import (
    dice,
    equal_area_diameter,
    hu_by_label,
    hu_distances,
    label_dice,
    nodule_obedience,
)
from lsdm_diffusers.labels import SemanticLabel

LUNG_HU, TISSUE_HU = -850.0, 20.0
Y, X = np.mgrid[:96, :96] - 48.0
RADIUS = np.hypot(Y, X)
SPACING = 0.7


def nodule_map(radius=10.0):
    """A round nodule in the middle of the lung."""
    labels = np.full(RADIUS.shape, SemanticLabel.LUNG, dtype=np.uint8)
    labels[RADIUS < radius] = SemanticLabel.NODULE_BENIGN
    return labels


def disc(radius):
    return np.where(RADIUS < radius, TISSUE_HU, LUNG_HU)


def test_dice_of_two_squares():
    a, b = np.zeros((2, 4, 4), dtype=bool)
    a[:2, :2], b[:2, 1:3] = True, True
    assert dice(a, b) == 0.5 and dice(a, a) == 1 and dice(a, ~a) == 0


def test_a_nodule_as_drawn_has_no_error():
    (figures,) = nodule_obedience(nodule_map(), disc(10), SPACING)
    assert figures == {"nodule_dice": 1, "diameter_error_mm": 0, "missed_nodules": 0}


@pytest.mark.parametrize("radius", [7.0, 13.0])
def test_a_nodule_of_another_size(radius):
    """Dice of two concentric discs is 2 r² / (r² + R²)."""
    (figures,) = nodule_obedience(nodule_map(), disc(radius), SPACING)
    smaller, larger = sorted((radius, 10.0))
    assert figures["nodule_dice"] == pytest.approx(2 * smaller**2 / (smaller**2 + larger**2), abs=0.02)
    assert figures["diameter_error_mm"] == pytest.approx(2 * abs(radius - 10) * SPACING, abs=0.15)


def test_an_empty_lung_misses_its_nodule():
    (figures,) = nodule_obedience(nodule_map(), np.full(RADIUS.shape, LUNG_HU), SPACING)
    assert figures["missed_nodules"] == 1 and figures["nodule_dice"] == 0
    assert figures["diameter_error_mm"] == pytest.approx(20 * SPACING, rel=0.02)


@pytest.mark.parametrize("spacing", [0.5, 1.0])
def test_tissue_counts_within_millimetres(spacing):
    """All of the slice is tissue: what counts is the nodule and 4.2 mm around it, whatever a pixel measures."""
    (figures,) = nodule_obedience(nodule_map(), np.full(RADIUS.shape, TISSUE_HU), spacing)
    assert figures["diameter_error_mm"] == pytest.approx(2 * REACH_MM, abs=0.6)


def test_tissue_of_the_chest_wall_and_of_other_nodules_does_not_count():
    labels = nodule_map()
    labels[X > 11] = SemanticLabel.SOFT_TISSUE
    labels[X < -13] = SemanticLabel.NODULE_MALIGNANT
    hu = np.where(labels == SemanticLabel.LUNG, LUNG_HU, TISSUE_HU)
    wall_and_nodules = nodule_obedience(labels, hu, SPACING)
    assert len(wall_and_nodules) == 2
    assert all(figures["nodule_dice"] == 1 for figures in wall_and_nodules)


def test_labels_that_the_map_does_not_show_have_no_figure():
    labels = np.full((96, 96), SemanticLabel.BACKGROUND, dtype=np.uint8)
    labels[20:80, 20:80] = SemanticLabel.SOFT_TISSUE
    hu = np.where(labels > 0, 50.0, -1000.0)
    figures = label_dice(labels, hu, SPACING)
    assert figures.keys() == {"dice_body"} and figures["dice_body"] > 0.9


def test_diameter_of_a_disc():
    assert equal_area_diameter(RADIUS < 20, 0.5) == pytest.approx(20, rel=0.01)


def test_densities_are_compared_label_by_label():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.array([[0], [2], [4]], dtype=np.uint8), 200, axis=1)
    real, shifted = (generator.normal([[-1000], [40], [-850]], 30, labels.shape) for _ in range(2))
    shifted[2] += 60
    real_hu, shifted_hu = hu_by_label([labels], [real]), hu_by_label([labels], [shifted])
    assert real_hu.keys() == {"soft_tissue", "lung"}  # the background is left out
    distances = hu_distances(real_hu, shifted_hu)
    assert distances["lung"] == pytest.approx(wasserstein_distance(real[2], shifted[2]) / real[2].std())
    assert distances["lung"] > 1.5 and distances["soft_tissue"] < 0.4
    assert hu_distances(real_hu, {"lung": shifted_hu["lung"]}).keys() == {"lung"}
