"""Nodules with the outline of asked ratings."""

import numpy as np
import pytest
from skimage.draw import ellipse
from skimage.measure import regionprops

from lsdm_diffusers.nodule_outline import MIN_AREA, outline_library, principal_axes, reshape_nodule
from lsdm_diffusers.semantic_map import Nodule, find_nodules


def lung_with(*nodules, shape=(128, 128)):
    """A lung with elliptic nodules of label 7: (row, column, half axis, half axis, angle)."""
    labels = np.full(shape, 4, dtype=np.uint8)
    for row, column, half_rows, half_columns, angle in nodules:
        labels[ellipse(row, column, half_rows, half_columns, rotation=angle)] = 7
    return labels


def solidity(labels):
    (region,) = regionprops((labels >= 5).astype(int))
    return region.solidity


LARGE = lung_with((64, 60, 16, 11, 0.7))


def test_the_library_has_marked_outlines_of_area_one():
    library = outline_library()
    assert len(library.points) == len(library.lobulation) == len(library.spiculation) == 72
    assert ((library.lobulation >= 4) | (library.spiculation >= 4)).all()
    following = np.roll(library.points, -1, axis=1)
    cross = library.points[..., 0] * following[..., 1] - following[..., 0] * library.points[..., 1]
    np.testing.assert_allclose(np.abs(cross.sum(1)) / 2, 1, atol=0.02)
    for wishes, most, least in (
        ({"lobulation": 5}, library.lobulation, library.spiculation),
        ({"spiculation": 5}, library.spiculation, library.lobulation),
    ):
        typical = library.typical(wishes)
        assert most[typical].min() >= 4 and most[typical].mean() > least[typical].mean() + 1


@pytest.mark.parametrize("feature", ["lobulation", "spiculation"])
def test_the_outline_changes_step_by_step_and_area_place_and_label_stay(feature):
    (nodule,) = find_nodules(LARGE)
    for seed in range(3):
        values = []
        for rating in (1, 2, 3, 4, 5):
            changed, drawn = reshape_nodule(LARGE, nodule, **{feature: rating}, seed=seed)
            (found,) = find_nodules(changed)
            assert found == drawn and found.label == 7
            assert found.area == pytest.approx(nodule.area, rel=0.05)
            assert np.hypot(*np.subtract(found.centroid_yx, nodule.centroid_yx)) < 4
            assert set(np.unique(changed)) == {4, 7}
            values.append(solidity(changed))
        assert values[0] == pytest.approx(solidity(LARGE), abs=0.02)
        assert values[0] - values[4] > 0.04 and np.diff(values).max() < 0.02


def test_rating_one_is_an_ellipse_of_the_same_axes():
    (nodule,) = find_nodules(LARGE)
    changed, drawn = reshape_nodule(LARGE, nodule, spiculation=1)
    overlap = ((changed == 7) & (LARGE == 7)).sum() / nodule.area
    assert drawn.area == nodule.area and overlap > 0.97
    for before, after in zip(
        *(principal_axes(np.argwhere(m == 7).astype(float)) for m in (LARGE, changed)), strict=True
    ):
        assert after == pytest.approx(before, rel=0.05)


def test_other_tissue_and_other_nodules_stay():
    labels = lung_with((60, 24, 12, 12, 0), (60, 42, 4, 4, 0))
    labels[:, :14] = 2
    nodule = find_nodules(labels)[0]
    changed, _ = reshape_nodule(labels, nodule, spiculation=4)
    np.testing.assert_array_equal(changed[:, :14], labels[:, :14])
    assert len(find_nodules(changed)) == 2 and find_nodules(changed)[1].area == find_nodules(labels)[1].area


def test_what_cannot_be_drawn_is_said():
    (nodule,) = find_nodules(LARGE)
    with pytest.raises(ValueError, match="both None, but at least one rating"):
        reshape_nodule(LARGE, nodule)
    with pytest.raises(ValueError, match="lobulation"):
        reshape_nodule(LARGE, nodule, lobulation=6)
    small = lung_with((64, 64, 4, 4, 0))
    with pytest.raises(
        ValueError, match=f"the nodule at \\(64, 64\\) has .* pixels, but .* only from {MIN_AREA} pixels"
    ):
        reshape_nodule(small, find_nodules(small)[0], lobulation=5)
    walled = np.where(LARGE == 7, 7, 2).astype(np.uint8)
    with pytest.raises(ValueError, match="only .*% of another outline would have room .*, and 75% are needed"):
        reshape_nodule(walled, find_nodules(walled)[0], spiculation=5, seed=7)


def test_a_nodule_of_a_mask_is_what_is_found_in_the_map():
    (nodule,) = find_nodules(LARGE)
    assert Nodule.from_mask(LARGE == 7, nodule.label) == nodule
