"""The square window around a nodule, in pixels and in latents."""

import numpy as np
import pytest

from lsdm_diffusers.nodule_crop import CROP, crop_box, square_window


@pytest.mark.parametrize(
    ("centroid", "expected"),
    [((255.5, 255.5), (56, 56, 72, 72)), ((0, 0), (0, 0, 16, 16)), ((511, 300), (112, 67, 128, 83))],
    ids=["centre", "corner", "bottom"],
)
def test_the_crop_is_centred_and_stays_in_the_frame(centroid, expected):
    assert crop_box(centroid, (128, 128), 4) == expected


@pytest.mark.parametrize("factor", [1, 4, 8])
def test_the_crop_is_the_square_window_of_64_pixels(factor):
    generator = np.random.default_rng(0)
    size = (320 // factor, 512 // factor)
    for centre in generator.uniform((0, 0), (319, 511), (200, 2)):
        assert crop_box(centre, size, factor) == square_window(centre, size, CROP // factor, factor)


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("edge", [64, 15])
def test_the_window_is_as_near_to_the_point_as_whole_pixels_allow(factor, edge):
    """At most half a unit away from it, or at the border of the frame."""
    size = np.array([90, 128])
    for centre in np.random.default_rng(1).uniform((0, 0), size * factor - 1, (200, 2)):
        y0, x0, y1, x1 = square_window(centre, size, edge, factor)
        start = np.array([y0, x0])
        assert (y1 - y0, x1 - x0) == (edge, edge) and (start >= 0).all() and (start + edge <= size).all()
        distance = np.abs(start + edge / 2 - (centre + 0.5) / factor)
        at_border = (start == 0) | (start + edge == size)
        assert ((distance <= 0.5) | at_border).all()


def test_halves_are_rounded_up_at_odd_and_even_pixels():
    """The point 100 lies half-way between two windows of an even edge, and so does 101; the later one is taken."""
    assert [square_window((y, y), (512, 512), 64)[0] for y in (100, 101, 102)] == [69, 70, 71]


def test_a_crop_in_latents_covers_the_crop_in_pixels():
    for centre in np.random.default_rng(2).uniform(0, 511, (200, 2)):
        pixels, latents = crop_box(centre, (512, 512), 1), crop_box(centre, (128, 128), 4)
        assert np.abs(np.array(pixels) - 4 * np.array(latents)).max() <= 2


def test_a_frame_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="`size` is 512x63, but a frame of at least 64x64"):
        square_window((5, 5), (512, 63), 64)
    with pytest.raises(ValueError, match="`semantic_map` is 512x60 pixels, but at least the 64x64 pixels"):
        crop_box((5, 5), (128, 15), 4)
