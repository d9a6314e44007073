"""Hounsfield units, scaled pixels, grey values and windows."""

import numpy as np
import pytest
import torch

from lsdm_diffusers.hounsfield import (
    HU_MAX,
    HU_MIN,
    HU_RANGE,
    WINDOWS,
    apply_window,
    grey_from_hu,
    hu_from_grey,
    hu_from_scaled,
    scaled_hu,
    window_limits,
)

HALF_GREY_VALUE_HU = HU_RANGE / 255 / 2


@pytest.mark.parametrize(("hu", "pixel"), [(-1024, -1), (-112, 0), (800, 1), (1712, 2), (-1936, -2)])
def test_scaling_is_linear_and_does_not_clip(hu, pixel):
    assert scaled_hu(hu) == pytest.approx(pixel)
    assert hu_from_scaled(pixel) == pytest.approx(hu)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_arrays_scale_there_and_back(dtype):
    hu = np.arange(-2000, 3072).astype(dtype)
    pixels = scaled_hu(hu)
    assert isinstance(pixels, np.ndarray) and pixels.dtype == (np.float64 if dtype == np.int16 else dtype)
    np.testing.assert_allclose(hu_from_scaled(pixels), hu, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_tensors_scale_there_and_back(dtype):
    hu = torch.arange(-2000, 3072).to(dtype)
    pixels = scaled_hu(hu)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(hu_from_scaled(pixels), hu.float(), atol=1e-3, rtol=0)


def test_gradients_pass_the_scaling():
    hu = torch.zeros(3, requires_grad=True)
    scaled_hu(hu).sum().backward()
    torch.testing.assert_close(hu.grad, torch.full((3,), 2 / HU_RANGE))


def test_grey_values_keep_hu_to_half_a_grey_value():
    hu = np.arange(HU_MIN, HU_MAX + 1)
    grey = grey_from_hu(hu)
    assert grey.dtype == np.uint8 and grey.min() == 0 and grey.max() == 255
    assert np.abs(hu_from_grey(grey) - hu).max() <= HALF_GREY_VALUE_HU + 1e-3


def test_each_grey_value_comes_back():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert hu_from_grey(grey).dtype == np.float32
    np.testing.assert_array_equal(grey_from_hu(hu_from_grey(grey)), grey)


def test_grey_values_clip_what_lies_outside_the_window():
    np.testing.assert_array_equal(grey_from_hu([-3024, HU_MIN - 1, HU_MAX + 1, 3071]), [0, 0, 255, 255])


def test_scaled_pixels_and_grey_values_span_the_same_window():
    pixels = np.linspace(-1, 1, 50)
    np.testing.assert_allclose(grey_from_hu(hu_from_scaled(pixels)), (pixels + 1) / 2 * 255, atol=0.51)


@pytest.mark.parametrize("window", [*WINDOWS, (40.0, 400.0), (0, 2)])
def test_a_window_is_black_and_white_from_its_borders_on(window):
    """DICOM PS3.3: black up to centre - width / 2, white from centre + width / 2 - 1 on, grey between them."""
    centre, width = window_limits(window)
    black, white = centre - width / 2, centre + width / 2 - 1
    np.testing.assert_array_equal(apply_window([black - 1000, black, white, white + 1000], window), [0, 0, 255, 255])
    if width > 300:  # so that one HU is less than one grey value, and five are more than half of one
        np.testing.assert_array_equal(apply_window([black + 5, white - 5], window) % 255 > 0, [True, True])


def test_the_middle_of_a_window_is_middle_grey():
    for name, (centre, _) in WINDOWS.items():
        assert abs(int(apply_window(centre - 0.5, name)) - 127.5) <= 0.5


def test_a_window_never_darkens_what_is_denser():
    grey = apply_window(np.arange(-1200, 1200), "mediastinal")
    assert grey.shape == (2400,) and (np.diff(grey.astype(int)) >= 0).all()


def test_a_pair_names_a_window_itself():
    assert window_limits((40, 400)) == window_limits("mediastinal") == (40, 400)


@pytest.mark.parametrize("window", ["brain", "", (40, 1), (40, 0), (float("nan"), 400), (40, float("inf"))])
def test_other_windows_are_refused(window):
    with pytest.raises(ValueError, match="`window` is .*needed"):
        window_limits(window)
    with pytest.raises(ValueError, match="`window` is .*needed"):
        apply_window(np.zeros(3), window)
