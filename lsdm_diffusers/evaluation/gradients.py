"""Gradients of the malignancy classifier at noisy real nodules: what guidance does to them (thesis, Fig. 5.4, 5.5)."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler

from ..guidance import classifier_gradient, nodule_mask
from ..latents import decode_latents, encode_pixels
from ..models.nodule_classifier import NoduleClassifier
from ..nodule_features import BENIGN_CLASS, MALIGNANT_CLASS
from ..pipeline_lsdm import LSDMGuidedPipeline
from .slices import pixels_from_hu


@torch.no_grad()
def noisy_nodules(
    pipe: LSDMGuidedPipeline, crops: Sequence[np.ndarray], timestep: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents of real nodules and their images, with the same noise at every timestep.

    The noising is the variance-preserving one that the classifiers were trained on, whatever the pipeline's scheduler.

    Args:
        pipe: gives the autoencoder and the noise schedule.
        crops: (64, 64) each, in Hounsfield units.
        timestep: t of the noise.
        seed: of the noise.

    Returns:
        Latents z_t, (N, c, 16, 16), and images D(z_t), (N, 1, 64, 64), around [-1, 1].
    """
    vae = pipe.vae
    latents = encode_pixels(vae, pixels_from_hu(crops).to(vae.device, vae.dtype))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    timesteps = torch.full((len(latents),), timestep)
    noisy = DDPMScheduler.from_config(pipe.scheduler.config).add_noise(latents, noise, timesteps)
    return noisy, decode_latents(vae, noisy)


def image_gradient(pipe: LSDMGuidedPipeline, images: torch.Tensor, timestep: int, malignant: bool) -> torch.Tensor:
    """∇ log p(malignant or benign | x_t) with respect to decoded noisy crops.

    Args:
        pipe: gives the malignancy classifier.
        images: (N, 1, 64, 64), from `noisy_nodules`.
        timestep: t of their noise.
        malignant: whether the gradient is that of malignant, or of benign.

    Returns:
        (N, 1, 64, 64).

    Raises:
        ValueError: for a pipeline without a malignancy classifier.
    """
    images = images.detach().requires_grad_(True)
    log_prob = _malignancy_classifier(pipe).log_prob(images, timestep, _targets(images, malignant))
    return torch.autograd.grad(log_prob.sum(), images)[0]


def latent_gradient(
    pipe: LSDMGuidedPipeline, latents: torch.Tensor, timestep: int, malignant: bool, nodules: Sequence[np.ndarray]
) -> torch.Tensor:
    """∇ log p(malignant or benign | D(z_t)) with respect to latent crops, inside the nodules, as guidance applies it.

    Args:
        pipe: gives the autoencoder and the malignancy classifier.
        latents: (N, c, 16, 16), from `noisy_nodules`.
        timestep: t of their noise.
        malignant: whether the gradient is that of malignant, or of benign.
        nodules: boolean masks (64, 64), one for each crop.

    Returns:
        (N, c, 16, 16), zero outside the nodules' masks.

    Raises:
        ValueError: for a pipeline without a malignancy classifier.
    """
    gradient = classifier_gradient(
        latents,
        timestep,
        decode=lambda crops: decode_latents(pipe.vae, crops),
        classifiers={"malignancy": _malignancy_classifier(pipe)},
        targets={"malignancy": _targets(latents, malignant)},
        scales={"malignancy": 1.0},
    )
    height, width = latents.shape[2:]
    masks = [nodule_mask(torch.from_numpy(nodule.copy()), (height, width)) for nodule in nodules]
    return gradient * torch.stack(masks)[:, None].to(gradient.device)


def _malignancy_classifier(pipe: LSDMGuidedPipeline) -> NoduleClassifier:
    if pipe.malignancy_classifier is None:
        raise ValueError("`pipe` has no malignancy_classifier, but gradients of it are needed.")
    return pipe.malignancy_classifier


def _targets(crops: torch.Tensor, malignant: bool) -> torch.Tensor:
    target = MALIGNANT_CLASS if malignant else BENIGN_CLASS
    return torch.full((len(crops),), float(target), device=crops.device)
