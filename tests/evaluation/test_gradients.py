"""Gradients of the malignancy classifier at noisy real nodules."""

import numpy as np
import pytest
import torch

from lsdm_diffusers.evaluation.gradients import image_gradient, latent_gradient, noisy_nodules

from ..conftest import tiny_pipeline


@pytest.fixture
def nodule():
    """The mask of a nodule of 8x8 pixels, which is 2x2 latents, in the middle of a crop."""
    mask = np.zeros((64, 64), bool)
    mask[28:36, 28:36] = True
    return mask


@pytest.fixture
def noisy(pipe):
    """Latents and images of two noisy crops at t = 100."""
    crops = [np.random.default_rng(seed).normal(-700, 200, size=(64, 64)).astype(np.float32) for seed in (0, 1)]
    return noisy_nodules(pipe, crops, 100)


def test_benign_and_malignant_pull_in_opposite_directions(pipe, noisy, nodule):
    """With the probabilities p and 1 - p of two classes, one gradient is -p / (1 - p) times the other."""
    latents, images = noisy
    assert latents.shape == (2, 3, 16, 16) and images.shape == (2, 1, 64, 64)
    in_images = [image_gradient(pipe, images, 100, malignant) for malignant in (False, True)]
    in_latents = [latent_gradient(pipe, latents, 100, malignant, [nodule] * 2) for malignant in (False, True)]
    for benign, malignant in (in_images, in_latents):
        cosine = torch.cosine_similarity(benign.flatten(1), malignant.flatten(1))
        assert cosine.allclose(torch.tensor(-1.0), atol=1e-3)


def test_the_gradient_is_zero_outside_the_dilated_nodule(pipe, noisy, nodule):
    gradient = latent_gradient(pipe, noisy[0], 100, True, [nodule] * 2)
    assert gradient[:, :, 7:9, 7:9].abs().min() > 0
    gradient[:, :, 6:10, 6:10] = 0
    assert gradient.eq(0).all()


def test_a_pipeline_without_the_classifier_is_named(noisy):
    with pytest.raises(ValueError, match="`pipe` has no malignancy_classifier"):
        image_gradient(tiny_pipeline(malignancy_classifier=None), noisy[1], 100, True)


def test_more_noise_keeps_its_draw(pipe):
    crops = [np.full((64, 64), -700, np.float32)]
    clean, little, much = (noisy_nodules(pipe, crops, t)[0] for t in (0, 100, 600))
    assert torch.cosine_similarity((little - clean).flatten(), (much - clean).flatten(), dim=0) > 0.9
    assert (much - clean).norm() > (little - clean).norm()
