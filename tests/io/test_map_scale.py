"""When a map is too coarse or too fine for the weights."""

from pathlib import Path

import numpy as np
import pytest

from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.demo.example_maps import example_maps
from lsdm_diffusers.io.map_scale import scale_warning
from lsdm_diffusers.semantic_map import read_semantic_map


def body(width, size=1024, left=20):
    labels = np.zeros((64, size), np.uint8)
    labels[10:50, left : left + width] = 1
    return labels


@pytest.mark.parametrize("pixel_spacing", [0.5, 0.703, 1.0, None])
def test_the_shipped_map_has_the_right_scale(pixel_spacing):
    assert scale_warning(read_semantic_map(example_map()), pixel_spacing) is None


@pytest.mark.parametrize("pixel_spacing", [0.2, 0.49, 1.01, 3.0])
def test_a_spacing_far_from_that_of_training_is_named(pixel_spacing):
    warning = scale_warning(read_semantic_map(example_map()), pixel_spacing)
    assert warning.startswith(f"A pixel of the map is {pixel_spacing:g} mm, but the weights were trained on")


def test_without_a_spacing_the_width_of_the_body_tells():
    for width in (120, 269, 901):
        assert scale_warning(body(width)).startswith(f"The body of the map is {width} pixels wide, but 270..900")
    for width in (270, 480, 900):
        assert scale_warning(body(width)) is None


@pytest.mark.parametrize("path", [example_map(), *example_maps().values()], ids=lambda path: Path(path).stem)
def test_real_maps_have_the_right_scale_and_at_half_their_size_a_warning(path):
    labels = read_semantic_map(path)
    assert scale_warning(labels) is None
    assert "pixels wide" in scale_warning(labels[::2, ::2])


def test_a_crop_shows_only_a_part_of_the_body():
    assert scale_warning(body(128, size=128, left=0)) is None
    assert scale_warning(body(950, size=950, left=0)) is not None
    assert scale_warning(np.zeros((64, 64), np.uint8)) is None
