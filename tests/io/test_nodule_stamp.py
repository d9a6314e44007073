"""Nodules drawn into a map: area, shape, label, and what is refused."""

import numpy as np
import pytest
from skimage.measure import perimeter

from lsdm_diffusers.io.nodule_stamp import SHAPES, stamp_nodule
from lsdm_diffusers.semantic_map import find_nodules


@pytest.fixture
def thorax():
    """160x256: two lungs in soft tissue, a trachea, air around, and one benign nodule in the left lung."""
    labels = np.zeros((160, 256), np.uint8)
    labels[10:150, 10:246] = 2
    labels[20:140, 20:120] = labels[20:140, 136:236] = 4
    labels[70:80, 124:132] = 0
    labels[60:70, 190:200] = 5
    return labels


def perimeter_over_area(nodule):
    """1 for a disc; more for a longer outline around the same area."""
    return perimeter(np.pad(nodule.box_mask, 1)) / np.sqrt(4 * np.pi * nodule.area)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("diameter", [3, 6, 11.5, 30, 60])
@pytest.mark.parametrize("spacing", [0.5, 0.7, 1.4])
def test_one_connected_nodule_of_the_asked_area(shape, diameter, spacing):
    labels = np.full((352, 352), 4, np.uint8)
    expected = np.pi * (diameter / spacing / 2) ** 2
    for seed in range(3):
        stamped = stamp_nodule(labels, (176.3, 175.8), diameter, spacing, shape, seed=seed)
        (nodule,) = find_nodules(stamped)
        assert (stamped != labels).sum() == nodule.area
        if shape == "spiculated":
            assert expected < nodule.area
            assert nodule.area < 1.5 * expected or diameter < 10  # a pixel is wide for the rays of a small one
        else:
            assert abs(nodule.area - expected) <= 0.5
        assert np.hypot(*np.subtract(nodule.centroid_yx, (176.3, 175.8))) < 0.15 * diameter / spacing + 1


def test_shapes_differ_in_their_outline_and_seeds_in_detail():
    labels = np.full((128, 128), 4, np.uint8)
    roughness = {shape: [] for shape in SHAPES}
    for shape in SHAPES:
        stamps = [stamp_nodule(labels, (64, 64), 20, 0.7, shape, seed=seed) for seed in range(8)]
        assert len({stamp.tobytes() for stamp in stamps}) == len(stamps)
        np.testing.assert_array_equal(stamps[3], stamp_nodule(labels, (64, 64), 20, 0.7, shape, seed=3))
        roughness[shape] = [perimeter_over_area(*find_nodules(stamp)) for stamp in stamps]
    assert (
        max(roughness["smooth"])
        < min(roughness["lobulated"])
        < max(roughness["lobulated"])
        < min(roughness["spiculated"])
    )


@pytest.mark.parametrize(
    ("malignancy", "label"), [(1, 5), (2.4, 5), (2.5, 6), (3, 6), (3.5, 7), (5, 7), ("benign", 5), ("malignant", 7)]
)
def test_label_of_the_malignancy(thorax, malignancy, label):
    before = thorax.copy()
    stamped = stamp_nodule(thorax, (60, 60), 8, 0.7, malignancy=malignancy)
    assert set(stamped[stamped != thorax]) == {label}
    np.testing.assert_array_equal(thorax, before)


def test_it_may_reach_into_the_chest_wall(thorax):
    stamped = stamp_nodule(thorax, (60, 22), 10, 0.7)
    assert {2, 4} == set(thorax[stamped == 7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"centre_yx": (60, 300)}, r"\(60, 300\), outside the map of 160x256"),
        ({"centre_yx": (float("nan"), 60)}, r"\(nan, 60\), outside the map"),
        ({"centre_yx": (3, 60)}, "too near to the edge"),
        ({"centre_yx": (7, 60), "diameter_mm": 4}, "on background, would reach outside the body"),
        ({"centre_yx": (25, 60), "diameter_mm": 30}, "would reach outside the body"),
        ({"centre_yx": (60, 128)}, "0% of the nodule .* on soft tissue"),
        ({"centre_yx": (60, 17)}, "at least half"),
        ({"centre_yx": (65, 187)}, r"touch nodule 1 of the map \(nodule, malignancy < 3\) at \(64, 194\)"),
        ({"diameter_mm": 2.9}, "`diameter_mm` is 2.9, but nodules of 3 to 60 mm"),
        ({"diameter_mm": 61}, "`diameter_mm` is 61"),
        ({"diameter_mm": float("nan")}, "`diameter_mm` is nan"),
        ({"pixel_spacing": 0}, "`pixel_spacing` is 0"),
        ({"pixel_spacing": 4, "diameter_mm": 3}, "less than one pixel"),
        ({"shape": "round"}, "`shape` is 'round', but 'smooth', 'lobulated', 'spiculated'"),
        ({"malignancy": 0}, "`malignancy` is 0"),
        ({"malignancy": "bad"}, "`malignancy` is 'bad'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(thorax, arguments, message):
    with pytest.raises(ValueError, match=message):
        stamp_nodule(thorax, **{"centre_yx": (60, 60), "diameter_mm": 10, "pixel_spacing": 0.7, **arguments})


def test_neighbours_stay_apart(thorax):
    """Two stamps of one label beside each other are two nodules."""
    stamped = stamp_nodule(thorax, (60, 50), 10, 0.7)
    stamped = stamp_nodule(stamped, (60, 70), 10, 0.7)
    assert [nodule.label for nodule in find_nodules(stamped)] == [7, 7, 5]
