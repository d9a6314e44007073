"""The labels of a semantic map: their definition, the checks of arrays and tensors, and the max-pooled one-hot map."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lsdm_diffusers.labels import (
    LABEL_NAMES,
    NUM_LABELS,
    PALETTE,
    SemanticLabel,
    check_label_array,
    check_label_tensor,
    max_pool_one_hot,
)


def test_labels_need_no_image_library():
    """The remote code of a component carries this module, and is to work without OpenCV and scikit-image."""
    code = "import sys, lsdm_diffusers.labels; print({'cv2', 'skimage', 'sklearn', 'diffusers'} & {*sys.modules})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"


def test_each_label_has_a_name_and_a_colour_of_its_own():
    assert [*SemanticLabel] == [*range(NUM_LABELS)]
    assert len(set(LABEL_NAMES)) == NUM_LABELS
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == NUM_LABELS


@pytest.mark.parametrize(
    ("rating", "expected"), [(1, 5), (2, 5), (2.49, 5), (2.5, 6), (3, 6), (3.49, 6), (3.5, 7), (4, 7), (5, 7)]
)
def test_the_label_follows_malignancy(rating, expected):
    assert SemanticLabel.for_malignancy(rating) == expected


@pytest.mark.parametrize("rating", [0, 0.99, 5.01, float("nan")])
def test_a_rating_outside_the_scale_is_refused(rating):
    with pytest.raises(ValueError, match=f"{rating}.*1..5"):
        SemanticLabel.for_malignancy(rating)


# Checks


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_right_labels_pass(all_labels, dtype):
    check_label_array(all_labels.astype(dtype))
    check_label_tensor(torch.from_numpy(all_labels.astype(dtype))[None])


@pytest.mark.parametrize(("wrong", "message"), [(-1, "value -1.*0..7"), (8, "value 8.*0..7")])
def test_values_outside_the_labels_are_named(all_labels, wrong, message):
    labels = all_labels.astype(np.int64)
    labels[2, 3] = wrong
    with pytest.raises(ValueError, match=message):
        check_label_array(labels)
    with pytest.raises(ValueError, match=message):
        check_label_tensor(torch.from_numpy(labels)[None])


def test_a_model_may_have_another_number_of_labels(all_labels):
    labels = torch.from_numpy(all_labels)[None]
    check_label_tensor(labels + 2, num_labels=10)
    with pytest.raises(ValueError, match="value 7.*0..6"):
        check_label_tensor(labels, num_labels=7)


@pytest.mark.parametrize("labels", [torch.zeros(8, 8, dtype=torch.long), torch.zeros(1, 8, 8)])
def test_tensors_of_other_shapes_and_dtypes_are_refused(labels):
    with pytest.raises(ValueError, match=r"has shape .* and dtype .*integer labels \(B, H, W\)"):
        check_label_tensor(labels)


# Max-pooled one-hot map


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (4, 8), (1, 1)])
def test_pooling_keeps_a_nodule_of_one_pixel(size):
    labels = torch.full((2, 64, 64), int(SemanticLabel.LUNG))
    labels[1, 37, 22] = SemanticLabel.NODULE_BENIGN
    pooled = max_pool_one_hot(labels, size)
    assert pooled.shape == (2, NUM_LABELS, *size) and pooled.dtype == torch.float32
    expected = torch.full((2, *size), int(SemanticLabel.LUNG))
    expected[1, 37 * size[0] // 64, 22 * size[1] // 64] = SemanticLabel.NODULE_BENIGN
    assert torch.equal(pooled.argmax(1), expected)
    assert torch.equal(pooled.sum(1), torch.ones(2, *size))


def test_pooling_to_the_same_size_is_one_hot(all_labels):
    pooled = max_pool_one_hot(torch.from_numpy(all_labels)[None], all_labels.shape)
    assert torch.equal(pooled.argmax(1)[0], torch.from_numpy(all_labels).long())
    assert pooled.unique().tolist() == [0, 1]


@pytest.mark.parametrize("size", [(7, 8), (8, 12), (128, 128), (0, 8), (-8, 8)])
def test_a_size_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"64x64.*{size[0]}x{size[1]}"):
        max_pool_one_hot(torch.zeros(1, 64, 64, dtype=torch.long), size)


def test_pooling_takes_a_batch_of_maps():
    with pytest.raises(ValueError, match=r"shape \(64, 64\).*\(B, H, W\)"):
        max_pool_one_hot(torch.zeros(64, 64, dtype=torch.long), (8, 8))
