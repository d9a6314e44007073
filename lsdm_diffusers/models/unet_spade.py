"""U-Net whose normalisation layers are modulated by a semantic map (SPADE; thesis, section 3.3; Park et al. 2019)."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.upsampling import Upsample2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..labels import NUM_LABELS, check_label_tensor, max_pool_one_hot
from ..nodule_features import HIGHEST_RATING, LOWEST_RATING
from .group_norm import WindowedGroupNorm
from .self_attention import SelfAttention2D

SPADE_BLOCKS = {"all": ("down", "mid", "up"), "mid_up": ("mid", "up"), "up": ("up",), "none": ()}

NormModulation = tuple[torch.Tensor, torch.Tensor]  # 1 + γ and β of one SPADE layer, each (B, channels, h, w)
BlockModulation = tuple[NormModulation, NormModulation]  # of the two norms of a ResNet block


def pool_ratings(nodule_ratings: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Rating maps as SPADE sees them: (rating - 3) / 2 where a rating is given, and a mask of where it is.

    Max-pooling to the resolution of a block keeps small nodules, as `max_pool_one_hot` does.

    Args:
        nodule_ratings: 1..5 in the pixels of nodules whose rating is given, 0 elsewhere, (B, ratings, H, W).
        size: height and width of the result; each divides that of the maps.

    Returns:
        (B, 2 * ratings, *size): the values in -1..1, then the masks of 0 and 1.

    >>> pool_ratings(torch.tensor([[[[0.0, 0.0], [0.0, 5.0]]]]), (1, 1)).flatten().tolist()
    [1.0, 1.0]
    """
    height, width = nodule_ratings.shape[-2:]
    if min(size) < 1 or height % size[0] or width % size[1]:
        raise ValueError(
            f"`nodule_ratings` of {height}x{width} pixels cannot be max-pooled to {size[0]}x{size[1]}: "
            "they must be a whole multiple of that size."
        )
    window = (height // size[0], width // size[1])
    pooled = F.max_pool2d(nodule_ratings.float(), window, window)
    is_given = (pooled > 0).float()
    middle = (LOWEST_RATING + HIGHEST_RATING) / 2
    values = (pooled - middle) / (HIGHEST_RATING - middle)
    return torch.cat([values * is_given, is_given], dim=1)


class SpadeNorm(nn.Module):
    """GroupNorm(h) · (1 + γ(m̃)) + β(m̃), where conv3x3 - SiLU - conv3x3 of the one-hot map make γ and β.

    Args:
        channels: channels of h.
        num_labels: channels of the one-hot map.
        hidden_channels: channels between the two convolutions.
        num_groups: groups of the group norm.
        eps: epsilon of the group norm.
        rating_channels: rated features that a convolution of their own adds to the first one's output. Its weights
            begin at zero.
    """

    def __init__(
        self,
        channels: int,
        num_labels: int,
        hidden_channels: int,
        num_groups: int,
        eps: float,
        rating_channels: int = 0,
    ):
        super().__init__()
        self.norm = WindowedGroupNorm(num_groups, channels, eps=eps, affine=False)
        self.map_conv = nn.Conv2d(num_labels, hidden_channels, 3, padding=1)
        if rating_channels:
            self.rating_conv = nn.Conv2d(2 * rating_channels, hidden_channels, 3, padding=1, bias=False)
            nn.init.zeros_(self.rating_conv.weight)
        self.gamma_beta_conv = nn.Conv2d(hidden_channels, 2 * channels, 3, padding=1)

    def modulation(self, one_hot: torch.Tensor, ratings: torch.Tensor | None = None) -> NormModulation:
        """1 + γ and β, each (B, channels, h, w), of the one-hot map and, where given, `pool_ratings` of its size."""
        hidden = self.map_conv(one_hot)
        if ratings is not None:
            hidden = hidden + self.rating_conv(ratings)
        gamma, beta = self.gamma_beta_conv(F.silu(hidden)).chunk(2, dim=1)
        return (1 + gamma).contiguous(), beta.contiguous()

    def forward(self, hidden_states: torch.Tensor, modulation: NormModulation) -> torch.Tensor:
        scale, shift = modulation
        hidden_states = self.norm(hidden_states)
        if len(scale) == len(hidden_states):
            # Sampling writes into the memory of the norm's own output: a new tensor costs more than the arithmetic.
            in_place = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
            out = hidden_states if in_place else None
            return torch.addcmul(shift, hidden_states, scale, out=out)
        # Each map has several consecutive images: broadcast its modulation over them instead of copying it.
        per_map = hidden_states.unflatten(0, (len(scale), -1))
        return torch.addcmul(shift[:, None], per_map, scale[:, None]).flatten(0, 1)


class SpadeResnetBlock2D(nn.Module):
    """ResNet block with time embedding, whose two norms are SPADE or plain group norms.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        time_channels: channels of the time embedding.
        num_labels: labels k of the semantic map.
        rating_channels: rated features that SPADE sees beside it.
        hidden_channels: channels between SPADE's two convolutions; None for plain group norms.
        num_groups: groups of the norms.
        eps: epsilon of the norms.
        dropout: dropout probability before the second convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        num_labels: int,
        rating_channels: int,
        hidden_channels: int | None,
        num_groups: int,
        eps: float,
        dropout: float,
    ):
        super().__init__()

        def norm(channels: int) -> Any:  # as `nn.Module`, it would have no method `modulation`
            if hidden_channels is None:
                return WindowedGroupNorm(num_groups, channels, eps=eps)
            return SpadeNorm(channels, num_labels, hidden_channels, num_groups, eps, rating_channels)

        self.is_spade = hidden_channels is not None
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def modulation(self, one_hot: torch.Tensor, ratings: torch.Tensor | None = None) -> BlockModulation:
        """What `forward` takes as `modulation`, from the one-hot map and the ratings at this resolution."""
        block_modulation: BlockModulation = self(one_hot=one_hot, ratings=ratings)
        return block_modulation

    def forward(
        self,
        hidden_states: torch.Tensor | None = None,
        time_embedding: torch.Tensor | None = None,
        modulation: BlockModulation | None = None,
        one_hot: torch.Tensor | None = None,
        ratings: torch.Tensor | None = None,
    ) -> torch.Tensor | BlockModulation:
        """Apply the block, or make its modulation.

        Both go through `forward`, because group offload moves the weights of a block when its `forward` is called.

        Args:
            hidden_states: (B, in_channels, h, w).
            time_embedding: (B, time_channels).
            modulation: from the method of that name; None where the norms are plain.
            one_hot: map (B, num_labels, h, w), in place of all the above, to make the modulation.
            ratings: of the same size, from `pool_ratings`, with `one_hot` alone.

        Returns:
            (B, out_channels, h, w), or the modulation where `one_hot` is given.
        """
        if one_hot is not None:
            return self.norm1.modulation(one_hot, ratings), self.norm2.modulation(one_hot, ratings)
        if hidden_states is None or time_embedding is None:
            raise ValueError("`hidden_states` and `time_embedding` are needed where `one_hot` is None.")
        in_place = not torch.is_grad_enabled()  # SiLU then overwrites the norms' own output
        residual: torch.Tensor = self.shortcut(hidden_states)
        hidden_states = self.norm1(hidden_states) if modulation is None else self.norm1(hidden_states, modulation[0])
        hidden_states = self.conv1(F.silu(hidden_states, inplace=in_place))
        hidden_states = hidden_states + self.time_proj(F.silu(time_embedding))[:, :, None, None]
        hidden_states = self.norm2(hidden_states) if modulation is None else self.norm2(hidden_states, modulation[1])
        hidden_states = self.conv2(self.dropout(F.silu(hidden_states, inplace=in_place)))
        return hidden_states + residual


class SpadeUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    r"""
    U-Net that predicts the noise (or v, or the sample) of latents and sees a semantic map by SPADE (thesis, Fig. 3.2).

    The modulation depends on the map alone. For sampling, `compute_modulation` makes it once per map, and
    `forward(..., modulation=)` reuses it at every step. For training, `forward` computes it from `semantic_map`.

    Args:
        sample_size: latent height and width it is meant for; information only, as any multiple of
            `2 ** (levels - 1)` works.
        in_channels: channels of the input: noisy latents and the encoded map, 2c.
        out_channels: latent channels c.
        num_labels: labels k of the semantic map.
        block_out_channels: width of each level.
        layers_per_block: ResNet blocks of a level on the way down; the way up has one more.
        attention_levels: for each level, whether self-attention follows its ResNet blocks. The middle block always
            has it.
        attention_head_dim: channels of an attention head, a divisor of every width.
        norm_num_groups: groups of the group norms, a divisor of every width.
        norm_eps: epsilon of the group norms.
        dropout: dropout probability inside the ResNet blocks.
        spade_blocks: which ResNet blocks are SPADE: "all", "mid_up", "up", or "none" (the LDM baseline, which sees the
            map in its input only).
        spade_hidden_channels: channels between the two convolutions that make γ and β.
        rating_channels: rated features of nodules that SPADE sees beside the map: 4 for `NODULE_FEATURES`; 0 for none.

    Raises:
        ValueError: for an unknown `spade_blocks`, another number of `attention_levels` than of widths, or widths that
            groups and heads do not divide.

    Example:
        >>> import torch
        >>> widths = {"block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": 8}
        >>> unet = SpadeUNet2DModel(attention_levels=(False, False), **widths)
        >>> labels = torch.zeros(1, 64, 64, dtype=torch.long)
        >>> unet(torch.randn(1, 6, 16, 16), 10, semantic_map=labels).sample.shape
        torch.Size([1, 3, 16, 16])
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["SpadeResnetBlock2D"]
    _no_split_modules = ["SpadeResnetBlock2D"]
    _skip_layerwise_casting_patterns = ["norm.norm", "norm1.norm", "norm2.norm", "group_norm", "conv_norm_out"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        in_channels: int = 6,
        out_channels: int = 3,
        num_labels: int = NUM_LABELS,
        block_out_channels: tuple[int, ...] = (128, 256, 384),
        layers_per_block: int = 2,
        attention_levels: tuple[bool, ...] = (False, False, True),
        attention_head_dim: int = 32,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        spade_blocks: str = "all",
        spade_hidden_channels: int = 128,
        rating_channels: int = 0,
    ):
        super().__init__()
        if spade_blocks not in SPADE_BLOCKS:
            raise ValueError(f"`spade_blocks` is {spade_blocks!r}, but one of {list(SPADE_BLOCKS)} is needed.")
        if len(attention_levels) != len(block_out_channels):
            raise ValueError(
                f"`attention_levels` has {len(attention_levels)} entries, "
                f"but `block_out_channels` has {len(block_out_channels)}."
            )
        wrong = [width for width in block_out_channels if width % norm_num_groups or width % attention_head_dim]
        if wrong:
            raise ValueError(
                f"`block_out_channels` contains {wrong[0]}, but each width must be a multiple of `norm_num_groups` "
                f"({norm_num_groups}) and `attention_head_dim` ({attention_head_dim})."
            )
        self.gradient_checkpointing = False
        time_channels = 4 * block_out_channels[0]
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_channels)
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1)

        def resnet(channels_in: int, channels_out: int, part: str) -> SpadeResnetBlock2D:
            hidden = spade_hidden_channels if part in SPADE_BLOCKS[spade_blocks] else None
            return SpadeResnetBlock2D(
                channels_in,
                channels_out,
                time_channels,
                num_labels,
                rating_channels,
                hidden,
                norm_num_groups,
                norm_eps,
                dropout,
            )

        def attention(channels: int) -> SelfAttention2D:
            return SelfAttention2D(channels, channels // attention_head_dim, norm_num_groups, norm_eps)

        levels = list(zip(block_out_channels, attention_levels, strict=True))
        self.down_resnets, self.down_attentions, self.downsamplers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, skips = block_out_channels[0], [block_out_channels[0]]
        for level, (width, attend) in enumerate(levels):
            for _ in range(layers_per_block):
                self.down_resnets.append(resnet(channels, width, "down"))
                self.down_attentions.append(attention(width) if attend else nn.Identity())
                channels = width
                skips.append(channels)
            if level < len(levels) - 1:
                self.downsamplers.append(Downsample2D(channels, use_conv=True, padding=1, name="op"))
                skips.append(channels)

        self.mid_resnets = nn.ModuleList([resnet(channels, channels, "mid") for _ in range(2)])
        self.mid_attention = attention(channels)

        self.up_resnets, self.up_attentions, self.upsamplers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (width, attend) in reversed(list(enumerate(levels))):
            for _ in range(layers_per_block + 1):
                self.up_resnets.append(resnet(channels + skips.pop(), width, "up"))
                self.up_attentions.append(attention(width) if attend else nn.Identity())
                channels = width
            if level > 0:
                self.upsamplers.append(Upsample2D(channels, use_conv=True))
        self.conv_norm_out = WindowedGroupNorm(norm_num_groups, channels, eps=norm_eps)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def _modulated_blocks(self) -> list[tuple[Any, int]]:
        """Each SPADE ResNet block with its level, in the order of `forward`."""
        levels, layers = len(self.config.block_out_channels), self.config.layers_per_block
        blocks = [(block, index // layers) for index, block in enumerate(self.down_resnets)]
        blocks += [(block, levels - 1) for block in self.mid_resnets]
        blocks += [(block, levels - 1 - index // (layers + 1)) for index, block in enumerate(self.up_resnets)]
        return [(block, level) for block, level in blocks if block.is_spade]

    @apply_forward_hook
    def compute_modulation(
        self,
        semantic_map: torch.Tensor,
        sample_size: int | tuple[int, int],
        nodule_ratings: torch.Tensor | None = None,
    ) -> tuple[BlockModulation, ...]:
        """γ and β of every SPADE layer for these maps.

        They depend on neither t nor z_t, so one call serves all steps of a sampling run.

        Args:
            semantic_map: integer labels 0..num_labels-1, (B, H, W), at image or latent resolution.
            sample_size: height and width of the latents, or both as one number; each divides that of the map.
            nodule_ratings: for a U-Net with `rating_channels`: (B, rating_channels, H, W), 1..5 in the pixels of
                nodules whose rating is given, 0 elsewhere, as `rating_maps` makes them; None gives no rating.

        Returns:
            What `forward` takes as `modulation`. It holds about `4 * channels * h * w` values for each SPADE block, so
            free it after the run.

        Raises:
            ValueError: for labels or ratings outside the range, a floating dtype of labels, or sizes that do not fit.
        """
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        num_labels = self.config.num_labels
        check_label_tensor(semantic_map, num_labels)
        sizes = [(height >> level, width >> level) for level in range(len(self.config.block_out_channels))]
        maps = [max_pool_one_hot(semantic_map, size, num_labels).to(self.dtype) for size in sizes]  # m̃ of each level
        ratings: list[torch.Tensor | None] = [None] * len(sizes)
        if nodule_ratings is not None:
            self._check_ratings(nodule_ratings, len(semantic_map))
            ratings = [pool_ratings(nodule_ratings, size).to(self.dtype) for size in sizes]
        return tuple(block.modulation(maps[level], ratings[level]) for block, level in self._modulated_blocks())

    def _check_ratings(self, nodule_ratings: torch.Tensor, num_maps: int) -> None:
        """Raise ValueError for ratings that do not fit; while tracing, their values are unknown and not checked."""
        channels = self.config.rating_channels
        if not channels:
            raise ValueError("`nodule_ratings` is given, but this U-Net has no `rating_channels`.")
        if nodule_ratings.ndim != 4 or tuple(nodule_ratings.shape[:2]) != (num_maps, channels):
            raise ValueError(
                f"`nodule_ratings` has shape {tuple(nodule_ratings.shape)}, but ({num_maps}, {channels}, H, W) is "
                "needed."
            )
        if torch.compiler.is_compiling():
            return
        is_wrong = (nodule_ratings != 0) & ~((nodule_ratings >= LOWEST_RATING) & (nodule_ratings <= HIGHEST_RATING))
        if is_wrong.any():
            raise ValueError(
                f"`nodule_ratings` contains the value {nodule_ratings[is_wrong][0].item():g}, but a rating "
                f"{LOWEST_RATING}..{HIGHEST_RATING}, or 0 where none is given, is needed."
            )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        semantic_map: torch.Tensor | None = None,
        modulation: tuple[BlockModulation, ...] | None = None,
        return_dict: bool = True,
        nodule_ratings: torch.Tensor | None = None,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict the noise (or v, or the sample) of noisy latents.

        Args:
            sample: noisy latents and the encoded map, (B, in_channels, h, w); h and w are multiples of
                `2 ** (levels - 1)`.
            timestep: training timestep, a number, or (B,).
            semantic_map: integer labels (B, H, W), or (B / n, H, W) where each map has n consecutive images.
            modulation: from `compute_modulation`, instead of `semantic_map`.
            return_dict: whether to return `UNet2DOutput` or a tuple.
            nodule_ratings: for `compute_modulation`, with `semantic_map`.

        Returns:
            `UNet2DOutput` with `sample` (B, out_channels, h, w), or a tuple of that tensor.

        Raises:
            ValueError: for a height or width that is no such multiple, or where SPADE has neither map nor modulation.
        """
        factor = 2 ** (len(self.config.block_out_channels) - 1)
        if sample.shape[-2] % factor or sample.shape[-1] % factor:
            raise ValueError(
                f"`sample` is {sample.shape[-2]}x{sample.shape[-1]}, "
                f"but height and width must be multiples of {factor}."
            )
        if modulation is None:
            if self.config.spade_blocks == "none":
                modulation = ()
            elif semantic_map is None:
                raise ValueError("`semantic_map` and `modulation` are both None, but SPADE needs one of them.")
            else:
                modulation = self.compute_modulation(semantic_map, sample.shape[-2:], nodule_ratings)

        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], device=sample.device)
        timestep = timestep.reshape(-1).to(sample.device).expand(len(sample))
        embedding = self.time_embedding(self.time_proj(timestep).to(sample.dtype))

        modulations = iter(modulation)

        def run(block: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
            block_modulation = next(modulations) if block.is_spade else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, embedding, block_modulation)
            else:
                hidden_states = block(hidden_states, embedding, block_modulation)
            return hidden_states

        layers = self.config.layers_per_block
        hidden_states = self.conv_in(sample)
        skips = [hidden_states]
        for index, (block, attention) in enumerate(zip(self.down_resnets, self.down_attentions, strict=True)):
            hidden_states = attention(run(block, hidden_states))
            skips.append(hidden_states)
            if (index + 1) % layers == 0 and index // layers < len(self.downsamplers):
                hidden_states = self.downsamplers[index // layers](hidden_states)
                skips.append(hidden_states)

        hidden_states = run(self.mid_resnets[0], hidden_states)
        hidden_states = run(self.mid_resnets[1], self.mid_attention(hidden_states))

        for index, (block, attention) in enumerate(zip(self.up_resnets, self.up_attentions, strict=True)):
            hidden_states = attention(run(block, torch.cat([hidden_states, skips.pop()], dim=1)))
            if (index + 1) % (layers + 1) == 0 and index // (layers + 1) < len(self.upsamplers):
                hidden_states = self.upsamplers[index // (layers + 1)](hidden_states)

        output = self.conv_out(F.silu(self.conv_norm_out(hidden_states)))
        return UNet2DOutput(sample=output) if return_dict else (output,)
