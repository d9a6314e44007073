"""Windows around nodules: where they are cut, which nodule they are of, and samples that are made once."""

import numpy as np
import pytest
from accelerate import Accelerator
from datasets import load_dataset

from lsdm_diffusers.evaluation.slices import EvaluationSlice
from lsdm_diffusers.evaluation.windows import (
    centred_window,
    cut_window,
    nodule_windows,
    sample_windows,
    window_file,
    window_seed,
)
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.nodule_crop import CROP, crop_box


@pytest.fixture
def whole_slice():
    """Two nodules, the second one in the corner."""
    labels = np.full((96, 128), SemanticLabel.LUNG, dtype=np.uint8)
    labels[40:50, 60:72] = SemanticLabel.NODULE_BENIGN
    labels[:6, 122:] = SemanticLabel.NODULE_MALIGNANT
    hu = np.where(labels >= SemanticLabel.NODULE_BENIGN, 20.0, -850.0)
    entries = [
        {"centroid_yx": [44.5, 65.5], "malignancy": 2.0},
        {"centroid_yx": [2.5, 124.5], "malignancy": 5.0, "patient_id": "of-the-nodule"},
    ]
    return EvaluationSlice(7, hu, labels, entries, "of-the-slice", 0.7)


def test_the_window_is_the_classifiers_crop(whole_slice):
    for nodule in whole_slice.nodules:
        rows, columns = centred_window((96, 128), nodule.centroid_yx, CROP)
        assert (rows.start, columns.start, rows.stop, columns.stop) == crop_box(nodule.centroid_yx, (96, 128), 1)
    with pytest.raises(ValueError, match="a frame of at least 128x128 is needed"):
        centred_window((96, 128), (40, 40), 128)


def test_a_window_knows_its_nodule(whole_slice):
    first, second = (
        cut_window(whole_slice, entry["centroid_yx"], entry, 64, str(number))
        for number, entry in enumerate(whole_slice.entries)
    )
    assert first.mask().sum() == 120 and second.mask().sum() == 36
    assert second.nodule.label == SemanticLabel.NODULE_MALIGNANT
    assert (first.patient_id, second.patient_id) == ("of-the-slice", "of-the-nodule")
    assert first.slice_patient_id == second.slice_patient_id == "of-the-slice"
    np.testing.assert_array_equal(second.hu[second.mask()], 20)
    assert first.crop(first.hu, 32).shape == (32, 32) and (first.crop(first.mask(), 32)).sum() == 120


def test_features_are_asked_of_the_own_nodule_alone(whole_slice):
    entry = whole_slice.entries[1]
    window = cut_window(whole_slice, entry["centroid_yx"], entry, 96, "both")
    assert [nodule.label for nodule in window.nodules] == [
        SemanticLabel.NODULE_MALIGNANT,
        SemanticLabel.NODULE_BENIGN,
    ]
    assert window.features({"texture": 5}) == [{"texture": 5}, {}]
    assert window.features(None) == [{}, {}]


def test_a_place_without_a_nodule_has_no_window(whole_slice):
    assert cut_window(whole_slice, (80.0, 10.0), whole_slice.entries[0], 16, "none") is None


def test_windows_of_a_dataset(dataset):
    split = load_dataset(str(dataset), split="validation")
    crops, larger = list(nodule_windows(split, CROP)), list(nodule_windows(split, 80))
    assert len(crops) == sum(kind == "nodule" for kind in split["kind"])
    assert len(larger) == sum(kind != "nodule" for kind in split["kind"])
    assert all(window.semantic_map.shape == (80, 80) for window in larger)
    assert len({window.name for window in crops}) == len(crops)
    assert not list(nodule_windows(split, 128))  # larger than the slices


def test_samples_are_made_once_from_the_noise_of_their_name(tmp_path, pipe, dataset):
    windows = list(nodule_windows(load_dataset(str(dataset), split="validation"), CROP))[:2]
    arguments = {"accelerator": Accelerator(), "pipe": pipe, "windows": windows, "num_inference_steps": 1}
    images = sample_windows(folder=tmp_path, batch_size=2, **arguments)
    file = window_file(tmp_path, windows[0], 0)
    made = file.stat().st_mtime_ns
    repeated = sample_windows(folder=tmp_path, **arguments)
    assert file.stat().st_mtime_ns == made
    np.testing.assert_array_equal(images, repeated)
    alone = sample_windows(folder=tmp_path / "alone", **arguments)
    np.testing.assert_allclose(images, alone, atol=1)  # HU; a batch rounds in another order
    assert len({window_seed(window, seed) for window in windows for seed in (0, 1)}) == 4
