"""Loss of the SPADE baseline: hinge, feature matching and perceptual terms (Park et al. 2019; Wang et al. 2018)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..models.spade_gan import SpadeGenerator
from .autoencoder_loss import hinge_loss

Features = Sequence[Sequence[torch.Tensor]]  # of each scale and layer, as `MultiscaleDiscriminator` returns them


def mean_over_scales(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of the losses of the scales, which are summed from the finest to the coarsest."""
    return sum(losses[1:], start=losses[0]) / len(losses)


def feature_matching_loss(generated: Features, real: Features) -> torch.Tensor:
    """L1 between the discriminators' features of generated and real images (Wang et al. 2018, eq. 4).

    It is summed over the layers without the last one, which are the logits, and averaged over the scales.

    Args:
        generated: features of the generated images.
        real: features of the real images. They get no gradient.
    """
    distance = generated[0][0].new_zeros(())
    for generated_features, real_features in zip(generated, real, strict=True):
        for layer, real_layer in zip(generated_features[:-1], real_features[:-1], strict=True):
            distance = distance + F.l1_loss(layer, real_layer.detach())
    return distance / len(generated)


def discriminator_loss(
    discriminator: nn.Module, pixels: torch.Tensor, image: torch.Tensor, semantic_map: torch.Tensor
) -> torch.Tensor:
    """Hinge loss of a `MultiscaleDiscriminator`, averaged over its scales, in one forward pass.

    Args:
        discriminator: the discriminator.
        pixels: real images (B, 1, H, W) in [-1, 1].
        image: generated images (B, 1, H, W). They get no gradient.
        semantic_map: labels (B, H, W) of both.
    """
    scales = discriminator(torch.cat([pixels, image.detach()]), torch.cat([semantic_map, semantic_map]))
    losses = []
    for features in scales:
        real, generated = features[-1].float().chunk(2)
        losses.append(hinge_loss(real, generated))
    return mean_over_scales(losses)


class SpadeGanLoss(nn.Module):
    """The generator and its loss in one module, because processes share gradients of one prepared forward pass only.

    Args:
        generator: the generator.
        feature_weight: weight of feature matching; 10 in both papers.
        perceptual: distance of two batches of images, from `perceptual_distance`; None leaves the term out.
        perceptual_weight: weight of that distance; 10 in both papers, for the distance by VGG features.
    """

    def __init__(
        self,
        generator: SpadeGenerator,
        feature_weight: float = 10.0,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 10.0,
    ):
        super().__init__()
        self.generator, self.perceptual = generator, perceptual
        self.feature_weight, self.perceptual_weight = feature_weight, perceptual_weight

    def forward(
        self,
        semantic_map: torch.Tensor,
        pixels: torch.Tensor,
        discriminator: nn.Module,
        latents: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Compute the loss of a batch.

        Args:
            semantic_map: labels (B, H, W).
            pixels: real images (B, 1, H, W) of these maps, in [-1, 1].
            discriminator: frozen `MultiscaleDiscriminator`.
            latents: noise of the generator; None for a generator without.

        Returns:
            The loss, its terms by name, and the generated images (B, 1, H, W).
        """
        image = self.generator(semantic_map, latents, return_dict=False)[0]
        generated = discriminator(image, semantic_map)
        with torch.no_grad():
            real = discriminator(pixels, semantic_map)
        parts = {
            "adversarial": -mean_over_scales([features[-1].float().mean() for features in generated]),
            "features": feature_matching_loss(generated, real),
        }
        loss = parts["adversarial"] + self.feature_weight * parts["features"]
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(image, pixels)
            loss = loss + self.perceptual_weight * parts["perceptual"]
        return loss, parts, image
