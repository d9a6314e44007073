"""The sham control: as strong and as local as the real gradient, in a direction that means nothing."""

import pytest
import torch

from lsdm_diffusers.evaluation.control.sham import ShamGuidedPipeline
from lsdm_diffusers.guidance import nodule_mask
from lsdm_diffusers.pipeline_lsdm import LSDMGuidedPipeline
from lsdm_diffusers.semantic_map import find_nodules

from ..conftest import sample, tiny_pipeline


@pytest.fixture
def guidance(semantic_map):
    """(sham pipeline, function of a timestep that gives the real and the sham gradient at some latents, mask)."""
    pipe = tiny_pipeline()
    sham = ShamGuidedPipeline(**pipe.components)
    latents = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    nodules = pipe._nodule_batch(semantic_map[None], [[{}, {"malignancy": "malignant"}]], 1, (24, 32), "cpu")
    pipe.scheduler.set_timesteps(10)
    pipe._guidance_scale = sham._guidance_scale = 4.0

    def gradients(timestep):
        return [
            kind._guidance(sham, latents, torch.tensor(timestep), None, nodules, "sequential")
            for kind in (LSDMGuidedPipeline, ShamGuidedPipeline)
        ]

    return (
        sham,
        gradients,
        nodule_mask(torch.from_numpy(find_nodules(semantic_map)[1].mask(semantic_map.shape)), (24, 32)),
    )


def test_same_norm_inside_the_same_mask(guidance):
    _, gradients, mask = guidance
    real, fake = gradients(301)
    assert real.abs().sum() > 0
    torch.testing.assert_close(fake.norm(), real.norm())
    assert not fake[..., ~mask].any() and (fake[..., mask] != 0).all()
    alike = torch.nn.functional.cosine_similarity(real[..., mask].flatten(), fake[..., mask].flatten(), dim=0)
    assert (
        abs(alike) < 4 / real[..., mask].numel() ** 0.5
    )  # the cosine of independent directions has a deviation of 1 / sqrt(d)


def test_draws_are_centred_on_zero(guidance):
    sham, gradients, mask = guidance
    draws = []
    for sham.sham_seed in range(100):
        draws.append(gradients(301)[1][..., mask].flatten())
    draws = torch.stack(draws)
    z = draws.mean(dim=0) / draws.std(dim=0) * len(draws) ** 0.5
    assert (z**2).mean() == pytest.approx(
        1, abs=4 * (2 / z.numel()) ** 0.5
    )  # as the means of centred draws are spread
    assert abs(z.mean()) < 4 / z.numel() ** 0.5


def test_directions_are_drawn_anew_or_held_and_turned_round(guidance):
    sham, gradients, _ = guidance
    first, other = gradients(301)[1], gradients(201)[1]
    sham.sham_sign = -1.0
    torch.testing.assert_close(gradients(301)[1], -first)
    cosine = lambda a, b: torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()  # noqa: E731
    assert abs(cosine(first, other)) < 0.9
    sham.sham_held = True
    assert cosine(gradients(301)[1], gradients(201)[1]) == pytest.approx(1, abs=1e-5)


def test_a_seed_is_an_image_and_scale_0_is_off(semantic_map):
    pipe = tiny_pipeline()
    sham = ShamGuidedPipeline(**pipe.components)
    sham.set_progress_bar_config(disable=True)
    asked = {"malignancy": "malignant"}
    assert (sample(sham, semantic_map, asked, guidance_scale=0.0) == sample(pipe, semantic_map)).all()
    shaken = sample(sham, semantic_map, asked, guidance_scale=500.0)
    assert (shaken == sample(sham, semantic_map, asked, guidance_scale=500.0)).all()
    assert (shaken != sample(pipe, semantic_map)).any()
    sham.sham_seed = 1
    assert (shaken != sample(sham, semantic_map, asked, guidance_scale=500.0)).any()
