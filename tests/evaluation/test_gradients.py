"""Gradients of the malignancy classifier at noisy real nodules."""

import numpy as np
import torch

from lsdm_diffusers.evaluation.gradients import image_gradient, latent_gradient, noisy_nodules


def test_benign_and_malignant_pull_apart_and_only_inside_the_nodule(pipe):
    crops = [np.random.default_rng(seed).normal(-700, 200, size=(64, 64)).astype(np.float32) for seed in (0, 1)]
    nodule = np.zeros((64, 64), bool)
    nodule[28:36, 28:36] = True
    latents, images = noisy_nodules(pipe, crops, 100)
    assert latents.shape == (2, 3, 16, 16) and images.shape == (2, 1, 64, 64)
    for gradient in (
        lambda malignant: image_gradient(pipe, images, 100, malignant),
        lambda malignant: latent_gradient(pipe, latents, 100, malignant, [nodule, nodule]),
    ):
        benign, malignant = (gradient(of).flatten(1) for of in (False, True))
        # of two classes p and 1 - p: the one gradient is -p / (1 - p) times the other
        assert torch.cosine_similarity(benign, malignant).allclose(torch.tensor(-1.0), atol=1e-3)
    g = latent_gradient(pipe, latents, 100, True, [nodule, nodule])
    assert g[:, :, 7:9, 7:9].abs().min() > 0
    assert g[:, :, :6].eq(0).all() and g[:, :, 10:].eq(0).all() and g[..., :6].eq(0).all() and g[..., 10:].eq(0).all()


def test_more_noise_keeps_its_draw(pipe):
    crops = [np.full((64, 64), -700, np.float32)]
    clean, little, much = (noisy_nodules(pipe, crops, t)[0] for t in (0, 100, 600))
    assert torch.cosine_similarity((little - clean).flatten(), (much - clean).flatten(), dim=0) > 0.9
    assert (much - clean).norm() > (little - clean).norm()
