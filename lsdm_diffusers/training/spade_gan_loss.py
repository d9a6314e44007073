"""What the SPADE baseline is trained with: hinge + feature matching + perceptual (Park et al. 2019, section 3; Wang et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import nn

from .autoencoder_loss import hinge_loss


def feature_matching_loss(made: list[list[torch.Tensor]], real: list[list[torch.Tensor]]) -> torch.Tensor:
    """L1 between the features of made and real images, summed over the layers but the logits, mean over scales (Wang et al. 2018, eq. 4).

    Args:
        made, real: what `MultiscaleDiscriminator` returns for each.
    """
    return sum(
        F.l1_loss(a, b.detach())
        for scales in zip(made, real, strict=True)
        for a, b in list(zip(*scales, strict=True))[:-1]
    ) / len(made)


def discriminator_loss(
    discriminator: nn.Module, pixels: torch.Tensor, image: torch.Tensor, semantic_map: torch.Tensor
) -> torch.Tensor:
    """Hinge loss of a `MultiscaleDiscriminator`, mean over its scales, in one forward of real `pixels` and made `image`, each (B, 1, H, W)."""
    judged = discriminator(torch.cat([pixels, image.detach()]), torch.cat([semantic_map, semantic_map]))
    return sum(hinge_loss(*features[-1].float().chunk(2)) for features in judged) / len(judged)


class SpadeGanLoss(nn.Module):
    """The generator and its loss in one forward: only through that do several processes share their gradients.

    Args:
        generator: the `SpadeGenerator`.
        feature_weight: of feature matching; 10 in both papers.
        perceptual: what `perceptual_distance` returns.
        perceptual_weight: of it; 10 in both papers, for another network.
    """

    def __init__(self, generator, feature_weight=10.0, perceptual=None, perceptual_weight=10.0):
        super().__init__()
        self.generator, self.perceptual = generator, perceptual
        self.feature_weight, self.perceptual_weight = feature_weight, perceptual_weight

    def forward(self, semantic_map, pixels, discriminator, latents=None):
        """Loss of the images made for labels (B, H, W) whose real slices are pixels (B, 1, H, W), before a frozen `discriminator`.

        Returns:
            The loss, its parts by name, and the images.
        """
        image = self.generator(semantic_map, latents)
        made = discriminator(image, semantic_map)
        with torch.no_grad():
            real = discriminator(pixels, semantic_map)
        parts = {
            "adversarial": -sum(features[-1].float().mean() for features in made) / len(made),
            "features": feature_matching_loss(made, real),
        }
        loss = parts["adversarial"] + self.feature_weight * parts["features"]
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(image, pixels)
            loss = loss + self.perceptual_weight * parts["perceptual"]
        return loss, parts, image
