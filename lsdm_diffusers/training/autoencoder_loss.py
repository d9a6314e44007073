"""Loss of the KL autoencoder: L1, perceptual, adversarial and KL terms (thesis, eq. 3.2; Esser et al. 2021)."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

MAX_ADAPTIVE_WEIGHT = 1e4  # of the adversarial term, as in the code of Esser et al. 2021
GRADIENT_NORM_FLOOR = 1e-4  # added to the norm that the adaptive weight is divided by, from the same code


def hinge_loss(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Hinge loss of a discriminator (Lim and Ye 2017): 0 if real logits are >= 1 and generated ones <= -1.

    Args:
        real: logits of real images, of any shape.
        generated: logits of generated images, of any shape.
    """
    return (F.relu(1 - real).mean() + F.relu(1 + generated).mean()) / 2


def discriminator_loss(discriminator: nn.Module, pixels: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """Hinge loss of a discriminator of images, with real and reconstructed ones in one forward pass.

    Args:
        discriminator: gives logits for images (B, 1, H, W).
        pixels: real images (B, 1, H, W) in [-1, 1].
        reconstruction: their reconstructions (B, 1, H, W). They get no gradient.
    """
    real, generated = discriminator(torch.cat([pixels, reconstruction.detach()])).float().chunk(2)
    return hinge_loss(real, generated)


class AutoencoderLoss(nn.Module):
    """The autoencoder and its loss in one module, because processes share gradients of one prepared forward pass only.

    Args:
        vae: the autoencoder.
        kl_weight: weight of the KL divergence from N(0, 1), which is a mean over the elements of the latents.
        difference_weight: weight of the L1 between differences of neighbouring pixels, vertical and horizontal.
        perceptual: distance of two batches of images, from `perceptual_distance`; None leaves the term out.
        perceptual_weight: weight of that distance.
        discriminator_weight: weight of the adversarial term. It is multiplied by the adaptive weight: the norm of the
            gradient of reconstruction and perceptual terms over that of the adversarial term, at the last layer.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        kl_weight: float,
        difference_weight: float = 0.0,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        discriminator_weight: float = 0.5,
    ):
        super().__init__()
        self.vae, self.perceptual = vae, perceptual
        self.kl_weight, self.difference_weight = kl_weight, difference_weight
        self.perceptual_weight, self.discriminator_weight = perceptual_weight, discriminator_weight

    def forward(
        self, pixels: torch.Tensor, noise: torch.Tensor, discriminator: nn.Module | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Compute the loss of a batch.

        Args:
            pixels: real images (B, 1, H, W) in [-1, 1].
            noise: standard normal noise (B, c, H / f, W / f), by which the latents are drawn from the posterior.
            discriminator: frozen discriminator; None leaves the adversarial term out.

        Returns:
            The loss, its terms by name, and the reconstruction (B, 1, H, W).
        """
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        reconstruction = self.vae.decode(latents).sample
        parts = {"l1": F.l1_loss(reconstruction, pixels), "kl": posterior.kl().mean() / latents[0].numel()}
        likeness = parts["l1"]
        if self.difference_weight:
            vertical, horizontal = (F.l1_loss(reconstruction.diff(dim=dim), pixels.diff(dim=dim)) for dim in (2, 3))
            parts["differences"] = vertical + horizontal
            likeness = likeness + self.difference_weight * parts["differences"]
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(reconstruction, pixels)
            likeness = likeness + self.perceptual_weight * parts["perceptual"]
        loss = likeness + self.kl_weight * parts["kl"]
        if discriminator is not None:
            parts["adversarial"] = -discriminator(reconstruction).mean()
            adaptive_weight = self._gradient_norm(likeness) / (
                self._gradient_norm(parts["adversarial"]) + GRADIENT_NORM_FLOOR
            )
            parts["adversarial_weight"] = (
                self.discriminator_weight * adaptive_weight.clamp(max=MAX_ADAPTIVE_WEIGHT).detach()
            )
            loss = loss + parts["adversarial_weight"] * parts["adversarial"]
        return loss, parts, reconstruction

    def _gradient_norm(self, loss: torch.Tensor) -> torch.Tensor:
        """Norm of the gradient of a loss at the last layer of the decoder."""
        return torch.autograd.grad(loss, self.vae.decoder.conv_out.weight, retain_graph=True)[0].norm()
