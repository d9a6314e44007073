"""What a guidance method gets of a step, and what it gives back: the one interface of all methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..models.group_norm import NormStatistics


@dataclass(frozen=True)
class GuidedStep:
    """One step of sampling, before guidance.

    Args:
        index: of the step, from 0.
        timestep: the scheduler's timestep, a 0-dim tensor.
        latents: z_t in the scheduler's coordinates, (B, c, h, w), float32.
        model_input: what the U-Net sees of them, after `scheduler.scale_model_input`, (B, c, h, w), in its dtype.
        model_output: what it predicts of the whole slices, before any method, (B, c, h, w), float32.
        norm_statistics: of the group norms of that evaluation, from `recorded_norms`.
        scales: {feature: s} of this step.
    """

    index: int
    timestep: torch.Tensor
    latents: torch.Tensor
    model_input: torch.Tensor
    model_output: torch.Tensor
    norm_statistics: NormStatistics
    scales: Mapping[str, float]


class GuidanceMethod(Protocol):
    """Guides the nodules of one call."""

    @property
    def modules(self) -> Sequence[torch.nn.Module]:
        """Modules that gradients pass through; `guidance.frozen` holds their weights during the call."""

    def __call__(self, model_output: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """The guided output, (B, c, h, w), of one that other methods may have guided already."""
