"""Where training crops are cut, and what a blank background is."""

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from lsdm_diffusers.data.dataset import scaled_pixels, slice_pixels
from lsdm_diffusers.training.data import crop_corner, open_splits


@pytest.fixture
def only_test(tmp_path, dataset):
    load_dataset(str(dataset), split="train").to_parquet(tmp_path / "test-00000-of-00001.parquet")
    return str(tmp_path)


def test_only_the_needed_splits_must_be_there(dataset, only_test):
    assert open_splits(only_test, split="test", needed=[]).keys() == {"test"}
    with pytest.raises(ValueError, match=r"has the splits \['test'\], but train and validation are needed"):
        open_splits(only_test)
    with pytest.raises(ValueError, match=r"has the splits \['test'\], but train is needed"):
        open_splits(only_test, split="test", needed=["train"])
    with pytest.raises(ValueError, match=r"--split is holdout, but one of \['test'\] is needed"):
        open_splits(only_test, split="holdout", needed=[])
    with pytest.raises(ValueError, match="--max_train_samples is 2, but the dataset .* has no split train"):
        open_splits(only_test, max_train_samples=2, needed=[])
    assert len(open_splits(str(dataset), max_train_samples=2)["train"]) == 2


def test_half_of_the_crops_have_a_nodule_inside():
    labels = np.full((96, 128), 4, np.uint8)
    labels[90, 5] = 7  # near a corner, which few random crops have
    generator = np.random.default_rng(0)
    corners = np.array([crop_corner(labels, 32, generator) for _ in range(2000)])
    assert (corners >= 0).all() and (corners <= (64, 96)).all()
    inside = [labels[y : y + 32, x : x + 32].max() == 7 for y, x in corners]
    chance = np.mean([64 >= y > 90 - 32 for y in range(65)]) * np.mean([x <= 5 for x in range(97)])
    assert np.mean(inside) == pytest.approx(0.5 + 0.5 * chance, abs=0.04)
    labels[90, 5] = 4
    assert np.ptp([crop_corner(labels, 32, generator) for _ in range(500)], axis=0).min() > 60
    assert crop_corner(labels, 96, generator)[0] == 0


def test_a_blank_background_ends_off_the_skin():
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 20:40] = 1
    labels[18:22, 28:32] = 0  # air inside the body: stays
    image = Image.fromarray(np.full((40, 60), 500, np.uint16))
    pixels, plain = slice_pixels(image, labels, blank_background=True), scaled_pixels(image)
    blank = np.ones((40, 60), bool)
    blank[7:33, 17:43] = False
    assert (pixels[:7] == -1).all() and (pixels[:, :17] == -1).all() and (pixels[blank] == -1).all()
    np.testing.assert_array_equal(pixels[10:30, 20:40], plain[10:30, 20:40])
    np.testing.assert_array_equal(pixels[8:10, 20:40], plain[8:10, 20:40])  # the edge of the skin
    np.testing.assert_array_equal(slice_pixels(image, labels, blank_background=False), plain)
