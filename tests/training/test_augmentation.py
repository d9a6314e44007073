"""Augmentation: image, map and ratings move alike, and HU stay within what scanners differ by."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lsdm_diffusers.hounsfield import hu_from_scaled, scaled_hu
from lsdm_diffusers.training.augmentation import AUGMENTATION, augment


def slice_of_disc(edge=128, hu=40.0):
    """A disc of tissue, right of the middle, in lung, and air outside the body."""
    y, x = np.mgrid[:edge, :edge]
    labels = np.full((edge, edge), 4, np.uint8)
    labels[:10] = 0
    labels[(y - 60) ** 2 + (x - 80) ** 2 < 20**2] = 7
    tissue = gaussian_filter((labels == 7).astype(float), 1)  # as sharp as a scanner
    pixels = np.where(labels == 0, -1024.0, -850 + (hu + 850) * tissue)
    ratings = np.zeros((4, edge, edge), np.float32)
    ratings[3][labels == 7] = 2.5
    return np.asarray(scaled_hu(pixels), dtype=np.float32), labels, ratings


def views(count=40, fill_with_air=True):
    return [augment(*slice_of_disc(), np.random.default_rng(seed), fill_with_air) for seed in range(count)]


def test_image_map_and_ratings_move_alike():
    for pixels, labels, ratings in views():
        inside = hu_from_scaled(pixels[labels == 7])
        assert np.median(inside) == pytest.approx(40, abs=AUGMENTATION.hu_offset + 1040 * AUGMENTATION.contrast + 2)
        assert set(np.unique(labels)) <= {0, 4, 7}
        assert np.array_equal(ratings[3] == 2.5, labels == 7) and not ratings[:3].any()
        assert pixels.dtype == np.float32 and labels.dtype == np.uint8 and ratings.dtype == np.float32
        assert pixels.min() >= -1 and pixels.max() <= 1


def test_half_are_mirrored_and_sizes_differ_as_stated():
    columns, areas = [], []
    for _, labels, _ in views():
        columns.append(np.argwhere(labels == 7)[:, 1].mean())
        areas.append((labels == 7).sum())
    assert 10 < sum(column < 64 for column in columns) < 30
    area = np.pi * 20**2
    assert (
        min(areas) > area * (0.99 - AUGMENTATION.scale) ** 2 and max(areas) < area * (1.01 + AUGMENTATION.scale) ** 2
    )
    assert max(areas) / min(areas) > 1.2


def test_air_outside_the_body_stays_blank_and_crops_are_mirrored_at_their_edge():
    for pixels, labels, _ in views(10):
        assert np.median(pixels[labels == 0]) == -1
    for pixels, labels, _ in views(10, fill_with_air=False):
        assert labels[40:].min() == 4  # nothing but lung and the disc lies that far below
        assert pixels[60:].min() > -0.95


def test_a_generator_gives_the_same_view():
    first, again = views(2), views(2)
    assert all(np.array_equal(a, b) for a, b in zip(first[1], again[1], strict=True))
