"""Semantic maps: reading and checking them, saving them as images, and finding their nodules."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lsdm_diffusers.labels import PALETTE, SemanticLabel
from lsdm_diffusers.semantic_map import find_nodules, read_semantic_map, semantic_map_image

# Reading


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int32, np.int64])
def test_integer_arrays_are_read(all_labels, dtype):
    result = read_semantic_map(all_labels.astype(dtype))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, all_labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_tensors_are_read(all_labels, dtype):
    np.testing.assert_array_equal(read_semantic_map(torch.from_numpy(all_labels).to(dtype)), all_labels)


def test_a_stack_keeps_its_shape(all_labels):
    stack = np.stack([all_labels, all_labels[::-1]])
    np.testing.assert_array_equal(read_semantic_map(stack), stack)
    np.testing.assert_array_equal(read_semantic_map(torch.from_numpy(stack)), stack)


def test_reading_copies(all_labels):
    before = all_labels.copy()
    read_semantic_map(all_labels)[:] = 0
    np.testing.assert_array_equal(all_labels, before)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_grey_image_and_its_png_are_read(all_labels, tmp_path, kind):
    image = Image.fromarray(all_labels)
    assert image.mode == "L"
    np.testing.assert_array_equal(read_semantic_map(image), all_labels)
    image.save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_semantic_map(kind(tmp_path / "map.png")), all_labels)


def test_the_palette_image_carries_labels_and_colours_through_a_png(all_labels, tmp_path):
    image = semantic_map_image(all_labels)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), all_labels)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PALETTE[all_labels])
    np.testing.assert_array_equal(read_semantic_map(image), all_labels)
    image.save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_semantic_map(tmp_path / "map.png"), all_labels)


@pytest.mark.parametrize("present", [[7], [0, 5], [4]])
def test_a_map_of_few_labels_keeps_them_through_a_png(present, tmp_path):
    """A PNG writer may pack a small palette into fewer bits; the indices must survive."""
    sparse = np.resize(np.array(present, dtype=np.uint8), (16, 16))
    semantic_map_image(sparse).save(tmp_path / "map.png", optimize=True)
    np.testing.assert_array_equal(read_semantic_map(tmp_path / "map.png"), sparse)


@pytest.mark.parametrize("wrong", [8, 255, -1])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_value_outside_the_labels_is_named(all_labels, wrong, as_tensor):
    all_labels = all_labels.astype(np.int16)
    all_labels[3, 5] = wrong
    with pytest.raises(ValueError, match=rf"value {wrong} \(1 pixels.*0\.\.7"):
        read_semantic_map(torch.from_numpy(all_labels) if as_tensor else all_labels)


def test_a_wrong_value_of_an_image_is_named():
    with pytest.raises(ValueError, match="value 128 "):
        read_semantic_map(Image.fromarray(np.full((8, 8), 128, dtype=np.uint8)))


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8), bool),
        torch.zeros(8, 8),
        torch.zeros(8, 8, dtype=torch.bfloat16),
        torch.zeros(8, 8) > 0,
    ],
)
def test_dtypes_other_than_integer_are_refused(source):
    with pytest.raises(ValueError, match="dtype (float|bool).*integer labels"):
        read_semantic_map(source)


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8, 8), (0, 8), ()])
def test_other_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match=r"has shape .*\(H, W\) or \(B, H, W\)"):
        read_semantic_map(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("mode", ["1", "F", "CMYK", "YCbCr", "HSV"])
def test_other_image_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f'mode "{mode}".*"L" or "P"'):
        read_semantic_map(Image.new(mode, (8, 8)))


@pytest.mark.parametrize("source", [None, 3, [[0, 1], [2, 3]], io.BytesIO()])
def test_other_types_are_refused(source):
    with pytest.raises(ValueError, match=type(source).__name__):
        read_semantic_map(source)


def test_an_image_shows_one_map_only(all_labels):
    with pytest.raises(ValueError, match="one map"):
        semantic_map_image(all_labels[None])


# Nodules


def test_nodules_come_in_raster_order_with_their_measures():
    labels = np.full((64, 80), SemanticLabel.LUNG, dtype=np.uint8)
    labels[40:44, 2:5] = 5  # first in column order, last in raster order
    labels[10:14, 60:66] = 7
    labels[10:12, 20:22] = 6
    labels[0, 79] = 5
    nodules = find_nodules(labels)
    assert [(n.label, n.area) for n in nodules] == [(5, 1), (6, 4), (7, 24), (5, 12)]
    assert [n.centroid_yx for n in nodules] == [(0.0, 79.0), (10.5, 20.5), (11.5, 62.5), (41.5, 3.0)]
    assert [n.box_yxyx for n in nodules] == [(0, 79, 1, 80), (10, 20, 12, 22), (10, 60, 14, 66), (40, 2, 44, 5)]
    assert all(isinstance(n.label, SemanticLabel) for n in nodules)


def test_touching_nodules_of_different_labels_stay_apart():
    labels = np.zeros((32, 32), dtype=np.uint8)
    labels[8:12, 8:12] = 5
    labels[8:12, 12:16] = 7
    assert [(n.label, n.centroid_yx, n.area) for n in find_nodules(labels)] == [
        (5, (9.5, 9.5), 16),
        (7, (9.5, 13.5), 16),
    ]


def test_pixels_that_touch_by_a_corner_are_one_nodule():
    assert [n.area for n in find_nodules(np.eye(8, dtype=np.uint8) * 6)] == [8]


def test_a_nodule_knows_its_own_pixels():
    """Another nodule of the same label may lie inside its box."""
    labels = np.zeros((16, 16), dtype=np.uint8)
    labels[2:12, 2] = labels[11, 2:12] = 5
    labels[4, 8] = 5
    long, dot = find_nodules(labels)
    assert (long.mask(labels.shape) | dot.mask(labels.shape)).sum() == (labels == 5).sum() == long.area + dot.area
    assert [tuple(point) for point in np.argwhere(dot.mask(labels.shape))] == [(4, 8)] and not long.mask(labels.shape)[
        4, 8
    ]


def test_no_other_label_is_a_nodule():
    assert find_nodules(np.arange(5, dtype=np.uint8).repeat(4).reshape(4, 5)) == []
    with pytest.raises(ValueError, match="one map"):
        find_nodules(np.zeros((2, 8, 8), dtype=np.uint8))
