"""Slices that an evaluation draws: which rows they are, and the ratings of their nodules."""

import numpy as np
import pytest
from datasets import load_dataset

from lsdm_diffusers.evaluation.slices import (
    EvaluationSlice,
    evenly_spread,
    nearest_entry,
    pixels_from_hu,
    rows_of_slices,
    slices_with_nodules,
)
from lsdm_diffusers.labels import SemanticLabel


def test_slices_are_the_rows_that_are_no_crops(dataset):
    split = load_dataset(str(dataset), split="validation")
    slices = slices_with_nodules(split)
    assert len(slices) == len(rows_of_slices(split)) == sum(kind != "nodule" for kind in split["kind"])
    assert [ct_slice.number for ct_slice in slices] == list(range(len(slices)))
    assert all(ct_slice.hu.shape == ct_slice.semantic_map.shape == (96, 96) for ct_slice in slices)
    assert slices_with_nodules(split, max_slices=1)[0].number == 0


def test_indices_are_evenly_spread():
    assert evenly_spread(9, 3) == [0, 4, 8]
    assert evenly_spread(3, 8) == evenly_spread(3) == [0, 1, 2]
    assert evenly_spread(0, 4) == []


def test_each_nodule_gets_its_own_ratings():
    labels = np.full((96, 96), SemanticLabel.LUNG, dtype=np.uint8)
    labels[10:20, 10:20], labels[60:70, 60:70] = SemanticLabel.NODULE_BENIGN, SemanticLabel.NODULE_MALIGNANT
    entries = [  # in another order than in the map
        {"centroid_yx": [64.0, 66.0], "malignancy": 5.0, "texture": None},
        {"centroid_yx": [14.0, 15.0], "malignancy": 2.0, "texture": 4.0},
    ]
    ct_slice = EvaluationSlice(0, np.zeros((96, 96)), labels, entries, "p", 0.7)
    assert ct_slice.true_ratings(["malignancy", "texture"]) == [
        {"malignancy": 2.0, "texture": 4.0},
        {"malignancy": 5.0},
    ]
    assert ct_slice.nodules is ct_slice.nodules  # found once
    assert nearest_entry(entries, (0, 0)) is entries[1]


def test_pixels_span_the_scaled_range():
    pixels = pixels_from_hu([np.full((4, 5), -1024, np.int16), np.full((4, 5), 800, np.int16)])
    assert pixels.shape == (2, 1, 4, 5)
    assert pixels[:, 0, 0, 0].tolist() == pytest.approx([-1, 1])
