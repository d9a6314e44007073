"""The sham of classifier guidance: as strong and as local as the classifier's, in a direction that means nothing."""

from dataclasses import dataclass

import torch

SEED_STRIDE = 1_000_003  # a prime above every timestep, so that no two pairs of seed and timestep share a draw


@dataclass
class ShamGradient:
    """Exchange each gradient of `LSDMGuidedPipeline` for Gaussian noise of its norm inside its mask.

    What an image gains under it, guidance gains by its strength alone. It is a pipeline's `gradient_hook`.

    Args:
        seed: draws the directions.
        sign: 1 or -1; -1 turns the directions round.
        held: whether one direction is kept for all steps, instead of one drawn for each step. Noise that is drawn anew
            cancels out over the steps, as a classifier's gradient does not.

    Example:
        >>> from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
        >>> pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())  # doctest: +SKIP
        >>> pipe.gradient_hook = ShamGradient(seed=1)  # doctest: +SKIP
        >>> out = pipe("map.png", {"malignancy": "malignant"}, guidance_scale=16.0)  # doctest: +SKIP
        >>> out.images[0].save("sham.png")  # doctest: +SKIP
    """

    seed: int = 0
    sign: float = 1.0
    held: bool = False

    def __call__(self, gradient: torch.Tensor, timestep: float, mask: torch.Tensor) -> torch.Tensor:
        """Draw a gradient whose norm over each image is that of `gradient`.

        Args:
            gradient: s·g with respect to the latents, (B, c, h, w).
            timestep: of the step.
            mask: (B, 1, h, w), boolean: where the nodules are guided.

        Returns:
            (B, c, h, w), zero outside the mask.
        """
        step_seed = 0 if self.held else 1 + int(timestep)
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + step_seed)
        draw = torch.randn(gradient.shape, generator=generator).to(gradient) * mask
        norm, draw_norm = (tensor.flatten(1).norm(dim=1)[:, None, None, None] for tensor in (gradient, draw))
        return self.sign * draw * norm / draw_norm.clamp(min=torch.finfo(draw.dtype).tiny)
