"""What the KL autoencoder is trained with: L1 + perceptual + adversarial + KL (thesis, eq. 3.2; Esser et al. 2021; Rombach et al. 2022)."""

import torch
import torch.nn.functional as F
from torch import nn


def hinge_loss(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """What a discriminator pays for its logits of real and of made images (Lim and Ye 2017): nothing for real >= 1 and made <= -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


def discriminator_loss(discriminator: nn.Module, pixels: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the discriminator, in one forward of both halves."""
    return hinge_loss(*discriminator(torch.cat([pixels, reconstruction.detach()])).float().chunk(2))


class AutoencoderLoss(nn.Module):
    """The autoencoder and its loss in one forward: only through that do several processes share their gradients.

    Args:
        vae: the `AutoencoderKL`.
        kl_weight: of the KL divergence to N(0, 1), mean over the latent's elements.
        difference_weight: of L1 on differences of neighbouring pixels, vertical and horizontal.
        perceptual: what `perceptual_distance` returns.
        perceptual_weight: of it.
        discriminator_weight: of the adversarial term, times ||grad of the rest|| / ||grad of that term|| at the last layer.
    """

    def __init__(
        self, vae, kl_weight, difference_weight=0.0, perceptual=None, perceptual_weight=1.0, discriminator_weight=0.5
    ):
        super().__init__()
        self.vae, self.perceptual = vae, perceptual
        self.kl_weight, self.difference_weight = kl_weight, difference_weight
        self.perceptual_weight, self.discriminator_weight = perceptual_weight, discriminator_weight

    def forward(self, pixels, noise, discriminator=None):
        """Loss of pixels (B, 1, H, W) in [-1, 1] with noise (B, c, H/f, W/f); adversarial too if a frozen `discriminator` is given.

        Returns:
            The loss, its parts by name, and the reconstruction.
        """
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        reconstruction = self.vae.decode(latents).sample
        parts = {"l1": F.l1_loss(reconstruction, pixels), "kl": posterior.kl().mean() / latents[0].numel()}
        likeness = parts["l1"]
        if self.difference_weight:
            parts["differences"] = sum(F.l1_loss(reconstruction.diff(dim=dim), pixels.diff(dim=dim)) for dim in (2, 3))
            likeness = likeness + self.difference_weight * parts["differences"]
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(reconstruction, pixels)
            likeness = likeness + self.perceptual_weight * parts["perceptual"]
        loss = likeness + self.kl_weight * parts["kl"]
        if discriminator is not None:
            parts["adversarial"] = -discriminator(reconstruction).mean()
            last = self.vae.decoder.conv_out.weight
            norms = [
                torch.autograd.grad(part, last, retain_graph=True)[0].norm()
                for part in (likeness, parts["adversarial"])
            ]
            parts["adversarial_weight"] = (
                self.discriminator_weight * (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()
            )
            loss = loss + parts["adversarial_weight"] * parts["adversarial"]
        return loss, parts, reconstruction
