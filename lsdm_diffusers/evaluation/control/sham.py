"""ShamGuidedPipeline: guidance as strong and as local as the classifier's, in a direction that means nothing; the control of evaluations."""

import torch

from ...pipeline_lsdm import LSDMGuidedPipeline


class ShamGuidedPipeline(LSDMGuidedPipeline):
    r"""
    Like `LSDMGuidedPipeline`, but each gradient is exchanged for Gaussian noise of its norm inside its mask.

    What an image gains under it, guidance gains by its strength alone. Three attributes steer it: `sham_seed` draws the directions,
    `sham_sign` (1 or -1) turns them round, and `sham_held` keeps one direction for all steps instead of drawing one for each: noise
    drawn anew cancels out over the steps, as a classifier's gradient does not.

    Example:
        >>> from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
        >>> sham = ShamGuidedPipeline(**LSDMGuidedPipeline.from_pretrained(small_checkpoint()).components)  # doctest: +SKIP
        >>> sham("map.png", {"malignancy": "malignant"}, guidance_scale=16.0).images[0].save("sham.png")  # doctest: +SKIP
    """

    sham_seed = 0
    sham_sign = 1.0
    sham_held = False

    def _guidance(self, latents, timestep, next_timestep, nodules, order):
        """s·g with g random; its norm over each image is that of the gradient which the classifiers have at these latents."""
        gradient = super()._guidance(latents, timestep, next_timestep, nodules, order)
        inside = torch.zeros_like(gradient)
        for image, (y0, x0, y1, x1), mask in zip(nodules.image, nodules.box, nodules.mask, strict=True):
            inside[image, :, y0:y1, x0:x1] += mask
        generator = torch.Generator().manual_seed(
            self.sham_seed * 1_000_003 + (0 if self.sham_held else 1 + int(timestep))
        )
        draw = torch.randn(gradient.shape, generator=generator).to(gradient) * (inside > 0)
        norm, norm_of_draw = (some.flatten(1).norm(dim=1)[:, None, None, None] for some in (gradient, draw))
        return self.sham_sign * draw * norm / norm_of_draw.clamp(min=torch.finfo(draw.dtype).tiny)
