"""Grain: noise of the right spectrum, level and place, and its measurement."""

import numpy as np
import pytest
import torch

from lsdm_diffusers.ct_noise import (
    NUM_FREQUENCIES,
    NUM_LEVELS,
    CTNoise,
    add_grain,
    check_grain,
    measure_ct_noise,
    noise_field,
    relative_level,
)

PEAK = 12  # bin of the peak of the noise power: 0.2 cycles per pixel
BINS = np.arange(NUM_FREQUENCIES)
NOISE = CTNoise(
    power=tuple((BINS + 0.5) * np.exp(-0.5 * ((BINS - PEAK) / 6) ** 2)),
    deviation_hu=(0, 10, 12, 30, 20),
    levels=tuple(np.linspace(0.5, 1.5, NUM_LEVELS)),
)
LABELS = torch.zeros(256, 256, dtype=torch.uint8)
LABELS[16:240, 16:240] = 2
LABELS[64:192, 32:160] = 4
LABELS[32:52, 180:230] = 3
LABELS[100:130, 60:90] = 7
HU = torch.full((256, 256), -850.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_field_has_mean_0_variance_1_and_the_power_spectrum_asked_for():
    fields = torch.stack([noise_field(NOISE, 256, 192, seeded(seed)) for seed in range(8)])
    assert fields.shape == (8, 256, 192) and fields.dtype == torch.float32
    assert fields.mean().abs() < 1e-6
    assert fields.std().item() == pytest.approx(1, abs=0.01)
    power = (torch.fft.fft2(fields).abs() ** 2).mean(0).numpy()
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(192)[None])
    bins = np.minimum(frequency * 2 * NUM_FREQUENCIES, NUM_FREQUENCIES - 1).astype(int)
    radial = np.bincount(bins.ravel(), power.ravel()) / np.bincount(bins.ravel())
    expected = np.array(NOISE.power)
    np.testing.assert_allclose((radial / radial.max())[2:26], (expected / expected.max())[2:26], atol=0.06)


def test_grain_scales_the_noise_of_each_tissue_and_spares_the_background():
    once = add_grain(HU, LABELS, NOISE, 1.0, seeded()) - HU
    torch.testing.assert_close(add_grain(HU, LABELS, NOISE, 2.0, seeded()) - HU, 2 * once, atol=1e-3, rtol=0)
    assert torch.equal(add_grain(HU, LABELS, NOISE, 0.0, seeded()), HU)
    assert not once[LABELS == 0].any()
    ratio = once[LABELS == 4].std() / once[LABELS == 2].std()
    assert ratio.item() == pytest.approx(20 / 12, rel=0.1)


def test_a_nodule_has_the_noise_of_its_density():
    inside = LABELS == 7
    faint = add_grain(HU, LABELS, NOISE, 1.0, seeded()) - HU
    solid_hu = torch.where(inside, 20.0, HU)
    solid = add_grain(solid_hu, LABELS, NOISE, 1.0, seeded()) - solid_hu
    torch.testing.assert_close(solid[inside] * 20 / 12, faint[inside], atol=1e-3, rtol=0)
    assert torch.equal(solid[~inside], faint[~inside])


def test_the_level_is_drawn_from_those_of_scanners():
    levels = [(add_grain(HU, LABELS, NOISE, 1.0, seeded(seed)) - HU)[LABELS == 4].std() / 20 for seed in range(40)]
    assert 0.45 < min(levels) < 0.65 and 1.35 < max(levels) < 1.6


def test_measuring_finds_the_noise_that_was_added():
    """Anatomy that a decoder blurs leaves slow residuals and residuals at edges; neither is noise."""
    slow = 8 * torch.sin(torch.arange(256) / 25)[:, None] * torch.ones(256)
    edges = torch.zeros(256, 256)
    edges[:, 1:] = 80.0 * (LABELS[:, 1:] != LABELS[:, :-1])
    noises = [add_grain(HU, LABELS, NOISE, 1.0, seeded(seed)) - HU for seed in range(60)]

    measured = measure_ct_noise(((noise + slow).numpy(), LABELS.numpy()) for noise in noises)
    power, expected = np.array(measured.power), np.array(NOISE.power)
    np.testing.assert_allclose((power / power.max())[8:], (expected / expected.max())[8:], atol=0.12)
    assert (power[:8] <= power.max() * (BINS[:8] + 1) / PEAK).all()  # without the slow residual
    assert CTNoise.from_config(measured.to_config()) == measured

    measured = measure_ct_noise(((noise + edges).numpy(), LABELS.numpy()) for noise in noises)
    assert measured.deviation_hu[0] == 0
    np.testing.assert_allclose(measured.deviation_hu[2:], NOISE.deviation_hu[2:], rtol=0.1)
    np.testing.assert_allclose(measured.levels, np.linspace(0.55, 1.45, NUM_LEVELS), atol=0.15)


def test_the_level_of_one_slice_is_found():
    residual = (add_grain(HU, LABELS, NOISE, 1.0, seeded(), level=0.7) - HU).numpy()
    assert relative_level(NOISE, residual, LABELS.numpy()) == pytest.approx(0.7, rel=0.1)
    assert relative_level(NOISE, 2 * residual, LABELS.numpy()) == pytest.approx(1.4, rel=0.1)
    assert relative_level(NOISE, residual, np.zeros((256, 256), np.uint8)) == 1


def test_measuring_needs_lung_and_soft_tissue():
    with pytest.raises(ValueError, match="no lung, no soft tissue or no 64x64 pixels of body"):
        measure_ct_noise([(np.zeros((128, 128)), np.zeros((128, 128), np.uint8))])


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="`deviation_hu` is .*, but 5 finite numbers"):
        CTNoise(NOISE.power, (1.0, 2.0), NOISE.levels)
    with pytest.raises(ValueError, match="`ct_noise` has \\['power'\\], but power, deviation_hu and levels"):
        CTNoise.from_config({"power": NOISE.power})
    for grain in (-1, float("nan"), "1", True, None):
        with pytest.raises(ValueError, match="`grain` is .*, but a finite number of at least 0"):
            check_grain(grain, NOISE.to_config())
    with pytest.raises(ValueError, match="`grain` is 1, but this checkpoint has no `ct_noise`"):
        check_grain(1, None)
