"""Volumes: noise that changes slowly along z, and nodules that keep their wishes."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from lsdm_diffusers.volume_noise import features_of_slices, noise_correlation, volume_noise

from .conftest import sample, tiny_pipeline

CPU = torch.device("cpu")


def noises(count, correlation, seed=0, shape=(1, 3, 64, 64)):
    return torch.cat(list(volume_noise(count, shape, correlation, torch.Generator().manual_seed(seed), CPU)))


def test_noise_is_standard_normal_and_correlates_by_distance():
    """The correlation of slices k apart is exp(-k·Δz / ℓ)."""
    correlation = noise_correlation(2.0, 10.0)
    assert correlation == pytest.approx(math.exp(-0.2))
    volume = noises(12, correlation).flatten(1)
    assert volume.mean(1).abs().max() < 0.05 and (volume.std(1) - 1).abs().max() < 0.05
    for distance in (1, 3, 6):
        pairs = zip(volume, volume[distance:], strict=False)
        measured = torch.stack([(one * other).mean() for one, other in pairs]).mean().item()
        assert measured == pytest.approx(correlation**distance, abs=0.02)


def test_a_slice_does_not_depend_on_how_many_follow():
    assert torch.equal(noises(3, 0.8), noises(7, 0.8)[:3])


def test_nodules_of_a_volume_keep_their_wishes_from_slice_to_slice():
    maps = np.full((4, 32, 32), 4, np.uint8)
    maps[0:3, 4:8, 4:8] = 7  # in three slices
    maps[1, 20:24, 20:24] = 5  # in one
    assert features_of_slices(maps, None) == [None] * 4
    first, second = {"texture": 1}, {"malignancy": "benign"}
    assert features_of_slices(maps, [first, second]) == [[first], [first, second], [first], None]
    assert features_of_slices(maps, first)[1] == [first, first]
    assert features_of_slices(maps, [None, second])[1] == [{}, second]
    for wrong in ([first], 3):
        with pytest.raises(ValueError, match="one dict for each of the 2 nodules of the volume"):
            features_of_slices(maps, wrong)


@pytest.fixture
def volume(semantic_map):
    return np.stack([semantic_map] * 3)


def test_neighbours_of_a_volume_agree_and_independent_slices_do_not(pipe, volume):
    def change(**arguments):
        hu = sample(pipe, volume, **arguments).astype(float)
        return np.abs(np.diff(hu, axis=0)).mean()

    independent = change(generator=[torch.Generator().manual_seed(seed) for seed in range(3)])
    assert change(volume=True, slice_spacing_mm=0.1) < 0.5 * change(volume=True, slice_spacing_mm=100)
    assert change(volume=True, slice_spacing_mm=100) == pytest.approx(independent, rel=0.3)


def test_a_volume_is_its_slices_with_that_noise(pipe, volume, semantic_map):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    wish = {"texture": 2}
    hu = sample(pipe, volume, wish, seed=5, volume=True, slice_spacing_mm=2.5)
    assert hu.shape == (3, 96, 128) and hu.dtype == np.int16
    for image, noise in zip(hu, noises(3, noise_correlation(2.5), 5, (1, 3, 24, 32)), strict=True):
        np.testing.assert_array_equal(image, sample(pipe, semantic_map, wish, latents=noise[None])[0])
    for output_type in ("pil", "np", "pt", "latent"):
        images = sample(pipe, volume[:2], volume=True, slice_spacing_mm=2.5, output_type=output_type)
        assert len(images) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"volume": True}, "`slice_spacing_mm` is missing"),
        ({"slice_spacing_mm": 2.0}, "is for `volume=True` alone"),
        ({"volume": True, "slice_spacing_mm": -1}, "`slice_spacing_mm` is -1, but a finite number of mm above 0"),
        ({"volume": True, "slice_spacing_mm": 2, "num_images_per_map": 2}, "`num_images_per_map` 1"),
        ({"volume": True, "slice_spacing_mm": 2, "eta": 1.0}, "`eta` 1.0, but a volume needs one that draws no noise"),
    ],
)
def test_bad_arguments_are_named(pipe, volume, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(pipe, volume, **arguments)


@pytest.mark.parametrize(
    ("scheduler", "options", "is_random"),
    [
        (DDIMScheduler, {}, False),
        (DPMSolverMultistepScheduler, {}, False),
        (EulerDiscreteScheduler, {}, False),
        (HeunDiscreteScheduler, {}, False),
        (DDPMScheduler, {}, True),
        (EulerAncestralDiscreteScheduler, {}, True),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, True),
    ],
)
def test_schedulers_that_draw_noise_are_refused(pipe, volume, scheduler, options, is_random):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    if is_random:
        with pytest.raises(ValueError, match=f"`scheduler` is {scheduler.__name__}"):
            sample(pipe, volume, volume=True, slice_spacing_mm=2)
    else:
        assert len(sample(pipe, volume[:1], volume=True, slice_spacing_mm=2)) == 1


def test_slices_without_a_nodule_are_not_warned_of(recwarn):
    """Guidance of the volume's nodule says nothing of the slices beyond it."""
    maps = np.full((3, 64, 64), 4, dtype=np.uint8)
    maps[1, 10:20, 10:20] = 7
    tiny_pipeline()(
        maps,
        {"malignancy": "benign"},
        guidance_scale=2.0,
        num_inference_steps=1,
        volume=True,
        slice_spacing_mm=2.0,
        output_type="hu",
    )
    assert not [warning for warning in recwarn if "nothing is guided" in str(warning.message)]
