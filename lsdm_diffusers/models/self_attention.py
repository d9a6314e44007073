"""Self-attention over the positions of an image, on the attention backends of diffusers."""

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from .group_norm import WindowedGroupNorm


class SelfAttentionProcessor2D:
    """Computes `SelfAttention2D` with the backend that `set_attention_backend` chose, or else PyTorch's own."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attention: "SelfAttention2D", hidden_states: torch.Tensor) -> torch.Tensor:
        positions = attention.group_norm(hidden_states.flatten(2)).transpose(1, 2)  # (B, h · w, channels)
        if attention.fused_projections:
            projections = attention.to_qkv(positions).chunk(3, dim=-1)
        else:
            projections = (attention.to_q(positions), attention.to_k(positions), attention.to_v(positions))
        query, key, value = (projection.unflatten(-1, (attention.heads, -1)) for projection in projections)
        attended: torch.Tensor = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        attended = attention.to_out[0](attended.flatten(2))
        return attended.transpose(1, 2).reshape(hidden_states.shape) + hidden_states


class SelfAttention2D(nn.Module, AttentionModuleMixin):
    """Group norm, multi-head self-attention over all positions, and a residual connection.

    Its parameters have the names of diffusers' `Attention`.

    Args:
        channels: channels of the input and output, a multiple of `heads` and `num_groups`.
        heads: number of heads.
        num_groups: groups of the group norm.
        eps: epsilon of the group norm.
    """

    processor: Any  # diffusers' methods may put another one here
    to_qkv: nn.Linear  # `fuse_projections` makes it
    _default_processor_cls = SelfAttentionProcessor2D
    _available_processors = [SelfAttentionProcessor2D]

    def __init__(self, channels: int, heads: int, num_groups: int, eps: float):
        super().__init__()
        self.heads = heads
        self.use_bias = True  # `fuse_projections` of diffusers reads it
        self.group_norm = WindowedGroupNorm(num_groups, channels, eps=eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list, for the name `to_out.0` in checkpoints
        self.processor = SelfAttentionProcessor2D()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Take (B, channels, h, w) to the same shape."""
        processor: Any = self.processor  # diffusers' methods may have put another one here
        attended: torch.Tensor = processor(self, hidden_states)
        return attended
