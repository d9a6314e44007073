"""Gradients of the malignancy classifier at noisy real nodules: what guidance would do to them (thesis, Fig. 5.4, 5.5)."""

import numpy as np
import torch
from diffusers import DDPMScheduler

from ..guidance import classifier_gradient, nodule_mask
from ..hounsfield import scaled_hu


def noisy_nodules(pipe, crops: list[np.ndarray], timestep: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents z_t and images D(z_t) in [-1, 1] of real crops (64, 64) in HU, with the same noise at every timestep.

    The noising is the variance-preserving one that the classifiers were trained on, whatever the pipeline's scheduler is.
    """
    vae = pipe.vae
    pixels = torch.from_numpy(scaled_hu(np.stack(crops).astype(np.float32)))[:, None].to(vae.device)
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents.device)
        latents = noise_scheduler.add_noise(latents, noise, torch.tensor([timestep] * len(latents)))
        return latents, vae.decode(latents / vae.config.scaling_factor).sample


def image_gradient(pipe, images: torch.Tensor, timestep: int, malignant: bool) -> torch.Tensor:
    """∇ log p(malignant or benign | x_t) with respect to decoded noisy crops (N, 1, 64, 64)."""
    images = images.detach().requires_grad_(True)
    target = torch.full((len(images),), float(malignant), device=images.device)
    return torch.autograd.grad(pipe.malignancy_classifier.log_prob(images, timestep, target).sum(), images)[0]


def latent_gradient(
    pipe, latents: torch.Tensor, timestep: int, malignant: bool, nodules: list[np.ndarray]
) -> torch.Tensor:
    """∇ log p(malignant or benign | D(z_t)) with respect to latent crops, inside the nodules' masks (64, 64): as guidance applies it."""
    target = {"malignancy": torch.full((len(latents),), float(malignant), device=latents.device)}
    decode = lambda z: pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample  # noqa: E731
    g = classifier_gradient(
        latents, timestep, decode, {"malignancy": pipe.malignancy_classifier}, target, {"malignancy": 1.0}
    )
    masks = torch.stack([nodule_mask(torch.from_numpy(nodule.copy()), tuple(latents.shape[2:])) for nodule in nodules])
    return g * masks[:, None].to(g.device)
