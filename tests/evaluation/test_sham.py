"""The sham control: as strong and as local as the real gradient, in a direction that means nothing."""

import pytest
import torch

from lsdm_diffusers import LSDMGuidedPipeline
from lsdm_diffusers.evaluation.control.sham import ShamGradient
from lsdm_diffusers.guidance import nodule_mask
from lsdm_diffusers.semantic_map import find_nodules

from ..conftest import sample, tiny_pipeline

MALIGNANT = {"malignancy": "malignant"}


@pytest.fixture
def recorded(semantic_map):
    """(gradient, timestep, mask) as a pipeline hands them to its hook in two steps; the second nodule is guided."""
    pipe, calls = tiny_pipeline(), []

    def record(gradient, timestep, mask):
        calls.append((gradient, timestep, mask))
        return gradient

    pipe.gradient_hook = record
    sample(pipe, semantic_map, [[{}, MALIGNANT]], guidance_scale=4.0, num_inference_steps=2)
    return calls


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_the_hook_sees_gradients_numbers_and_the_nodules_mask(recorded, semantic_map):
    nodule = torch.from_numpy(find_nodules(semantic_map)[1].mask(semantic_map.shape))
    for gradient, timestep, mask in recorded:
        assert gradient.shape == (1, 3, 24, 32) and gradient.abs().sum() > 0
        assert torch.equal(mask, nodule_mask(nodule, (24, 32))[None, None])
        assert not gradient[~mask.expand_as(gradient)].any()
        assert isinstance(timestep, (int, float))


def test_same_norm_inside_the_same_mask(recorded):
    gradient, timestep, mask = recorded[0]
    sham = ShamGradient()(gradient, timestep, mask)
    inside = mask.expand_as(sham)
    torch.testing.assert_close(sham.norm(), gradient.norm())
    assert not sham[~inside].any() and (sham[inside] != 0).all()
    # the cosine of independent directions has a deviation of 1 / sqrt(d)
    assert abs(cosine(gradient[inside], sham[inside])) < 4 / gradient[inside].numel() ** 0.5


def test_each_image_keeps_its_norm():
    gradient = (
        torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 5.0])[:, None, None, None]
    )
    sham = ShamGradient()(gradient, 301, torch.ones(2, 1, 24, 32, dtype=torch.bool))
    torch.testing.assert_close(sham.flatten(1).norm(dim=1), gradient.flatten(1).norm(dim=1))


def test_draws_are_centred_on_zero(recorded):
    gradient, timestep, mask = recorded[0]
    inside = mask.expand_as(gradient)
    draws = torch.stack([ShamGradient(seed)(gradient, timestep, mask)[inside] for seed in range(100)])
    z = draws.mean(dim=0) / draws.std(dim=0) * len(draws) ** 0.5
    # as the means of centred draws are spread
    assert (z**2).mean() == pytest.approx(1, abs=4 * (2 / z.numel()) ** 0.5)
    assert abs(z.mean()) < 4 / z.numel() ** 0.5


def test_directions_are_drawn_anew_or_held_and_turned_round(recorded):
    gradient, _, mask = recorded[0]
    fresh, held = ShamGradient(seed=3), ShamGradient(seed=3, held=True)
    torch.testing.assert_close(ShamGradient(3, sign=-1.0)(gradient, 301, mask), -fresh(gradient, 301, mask))
    assert abs(cosine(fresh(gradient, 301, mask), fresh(gradient, 201, mask))) < 0.9
    assert cosine(held(gradient, 301, mask), held(gradient, 201, mask)) == pytest.approx(1, abs=1e-5)


def test_a_seed_is_an_image_and_scale_0_is_off(semantic_map):
    pipe = tiny_pipeline()
    plain = sample(pipe, semantic_map)
    pipe.gradient_hook = ShamGradient()
    assert (sample(pipe, semantic_map, MALIGNANT, guidance_scale=0.0) == plain).all()
    shaken = sample(pipe, semantic_map, MALIGNANT, guidance_scale=500.0)
    assert (shaken == sample(pipe, semantic_map, MALIGNANT, guidance_scale=500.0)).all()
    assert (shaken != plain).any()
    pipe.gradient_hook = ShamGradient(seed=1)
    assert (shaken != sample(pipe, semantic_map, MALIGNANT, guidance_scale=500.0)).any()


def test_pipelines_that_share_components_do_not_share_the_hook(semantic_map):
    pipe = tiny_pipeline()
    real = sample(pipe, semantic_map, MALIGNANT, guidance_scale=500.0)
    sham = LSDMGuidedPipeline(**pipe.components)
    sham.set_progress_bar_config(disable=True)
    sham.gradient_hook = ShamGradient()
    shaken = sample(sham, semantic_map, MALIGNANT, guidance_scale=500.0)
    assert (shaken != real).any()
    assert pipe.gradient_hook is None
    assert (sample(pipe, semantic_map, MALIGNANT, guidance_scale=500.0) == real).all()
