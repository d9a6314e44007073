"""Between images and scaled latents: the one place where the autoencoder's `scaling_factor` is applied.

The U-Net sees latents that are scaled to a standard deviation of about 1. Those that the autoencoder itself gives and
takes are 1 / `scaling_factor` times as large.
"""

import torch
from diffusers import AutoencoderKL

from .labels import NUM_LABELS


def encode_pixels(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """E(x): the scaled latents of images, the mode of the posterior.

    Args:
        vae: the autoencoder.
        pixels: (B, 1, H, W) in [-1, 1], which is -1024..800 HU, in the autoencoder's dtype.

    Returns:
        (B, c, H / f, W / f).
    """
    latents: torch.Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """D(z): the images of scaled latents.

    Args:
        vae: the autoencoder.
        latents: (B, c, h, w), of any floating dtype.

    Returns:
        (B, 1, f·h, f·w), around [-1, 1] and not clipped, in the autoencoder's dtype.
    """
    pixels: torch.Tensor = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
    return pixels


def map_pixels(labels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Semantic maps as the autoencoder sees them: labels 0..7 scaled to [-1, 1] (thesis, section 3.3).

    Args:
        labels: (B, H, W), integer labels 0..7.
        dtype: that of the autoencoder.

    Returns:
        (B, 1, H, W).
    """
    return labels[:, None].to(dtype) * (2 / (NUM_LABELS - 1)) - 1


def encode_map(vae: AutoencoderKL, labels: torch.Tensor) -> torch.Tensor:
    """E(m): the scaled latents of semantic maps, whose labels 0..7 are scaled to [-1, 1] (thesis, section 3.3).

    One map at a time, so that the latents of a map do not depend on the batch it is in.

    Args:
        vae: the autoencoder.
        labels: (B, H, W), integer labels 0..7.

    Returns:
        (B, c, H / f, W / f).
    """
    return torch.cat([encode_pixels(vae, one_map[None]) for one_map in map_pixels(labels, vae.dtype)])
