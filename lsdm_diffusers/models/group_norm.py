"""Group norm that can normalise a window of a picture by the statistics of the whole picture.

A group norm takes mean and variance over the whole picture. A window of it has others, so a U-Net would see the same
place in another way. Recorded once from the whole picture, the statistics let a U-Net evaluate windows alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

# Mean and 1 / standard deviation of each norm, (B, groups) each.
NormStatistics = dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]

# Context variables, since threads may share a model.
_recorded: ContextVar[NormStatistics | None] = ContextVar("recorded_norms", default=None)
_replayed: ContextVar[NormStatistics | None] = ContextVar("replayed_norms", default=None)


@contextmanager
def recorded_norms() -> Iterator[NormStatistics]:
    """Collect the statistics of every `WindowedGroupNorm` that is called inside the context.

    The outputs stay the same. Compiled norms are not recorded.
    """
    statistics: NormStatistics = {}
    token = _recorded.set(statistics)
    try:
        yield statistics
    finally:
        _recorded.reset(token)


@contextmanager
def replayed_norms(statistics: NormStatistics, images: torch.Tensor) -> Iterator[None]:
    """Normalise by recorded statistics inside the context.

    Args:
        statistics: from `recorded_norms`.
        images: (N,), for each sample of the batch that is normalised, its picture in the recorded batch.
    """
    chosen = {norm: (mean[images], scale[images]) for norm, (mean, scale) in statistics.items()}
    token = _replayed.set(chosen)
    try:
        yield
    finally:
        _replayed.reset(token)


class WindowedGroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` whose statistics can be recorded and replayed; its parameters have the same names."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Normalise (B, channels, ...)."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        replayed, recorded = _replayed.get(), _recorded.get()
        if replayed is not None:
            return self._normalise(input, *replayed[self])
        if recorded is None:
            return super().forward(input)
        groups = input.float().reshape(len(input), self.num_groups, -1)
        variance, mean = torch.var_mean(groups, dim=2, correction=0)
        recorded[self] = mean, torch.rsqrt(variance + self.eps)
        return super().forward(input)

    def _normalise(self, hidden_states: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        per_group = self.num_channels // self.num_groups
        scale = scale.float().repeat_interleave(per_group, dim=1)
        shift = -mean.float().repeat_interleave(per_group, dim=1) * scale
        if self.weight is not None:
            scale, shift = scale * self.weight.float(), shift * self.weight.float() + self.bias.float()
        shape = (*scale.shape, *(1 for _ in hidden_states.shape[2:]))
        normalised = torch.addcmul(shift.reshape(shape), hidden_states.float(), scale.reshape(shape))
        return normalised.to(hidden_states.dtype)
