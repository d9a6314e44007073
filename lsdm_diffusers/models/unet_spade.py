"""U-Net whose normalisation layers are modulated by a semantic map (SPADE; thesis, section 3.3; Park et al. 2019)."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.upsampling import Upsample2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..labels import NUM_LABELS, check_label_tensor, max_pool_one_hot

SPADE_BLOCKS = {"all": ("down", "mid", "up"), "mid_up": ("mid", "up"), "up": ("up",), "none": ()}


class SpadeNorm(nn.Module):
    """GroupNorm(h) · (1 + γ(m̃)) + β(m̃); γ and β from conv3x3 - SiLU - conv3x3 of the one-hot map, both in one convolution."""

    def __init__(self, channels: int, num_labels: int, hidden_channels: int, num_groups: int, eps: float):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=eps, affine=False)
        self.map_conv = nn.Conv2d(num_labels, hidden_channels, 3, padding=1)
        self.gamma_beta_conv = nn.Conv2d(hidden_channels, 2 * channels, 3, padding=1)

    def modulation(self, one_hot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1 + γ, β), each (B, channels, h, w), of the one-hot map (B, num_labels, h, w)."""
        gamma, beta = self.gamma_beta_conv(F.silu(self.map_conv(one_hot))).chunk(2, dim=1)
        return (1 + gamma).contiguous(), beta.contiguous()

    def forward(self, hidden_states: torch.Tensor, modulation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        scale, shift = modulation
        hidden_states = self.norm(hidden_states)
        if len(scale) == len(hidden_states):
            # while sampling, into the memory of the norm's own output: a new tensor costs more than the arithmetic
            return torch.addcmul(shift, hidden_states, scale, out=None if torch.is_grad_enabled() else hidden_states)
        # several images of each map: broadcast, do not copy
        per_map = hidden_states.unflatten(0, (len(scale), -1))
        return torch.addcmul(shift[:, None], per_map, scale[:, None]).flatten(0, 1)


class SpadeResnetBlock2D(nn.Module):
    """ResNet block with time embedding; its two norms are SPADE where `hidden_channels` is given, plain GroupNorm otherwise."""

    def __init__(
        self, in_channels, out_channels, time_channels, num_labels, hidden_channels, num_groups, eps, dropout
    ):
        super().__init__()

        def norm(channels):
            if hidden_channels is None:
                return nn.GroupNorm(num_groups, channels, eps=eps)
            return SpadeNorm(channels, num_labels, hidden_channels, num_groups, eps)

        self.is_spade = hidden_channels is not None
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def modulation(self, one_hot: torch.Tensor):
        """What `forward` takes as `modulation`, for the one-hot map at this block's resolution."""
        return self.norm1.modulation(one_hot), self.norm2.modulation(one_hot)

    def forward(self, hidden_states, time_embedding, modulation=None):
        residual = self.shortcut(hidden_states)
        hidden_states = self.norm1(hidden_states) if modulation is None else self.norm1(hidden_states, modulation[0])
        in_place = not torch.is_grad_enabled()  # on the norms' own output
        hidden_states = (
            self.conv1(F.silu(hidden_states, inplace=in_place))
            + self.time_proj(F.silu(time_embedding))[:, :, None, None]
        )
        hidden_states = self.norm2(hidden_states) if modulation is None else self.norm2(hidden_states, modulation[1])
        return self.conv2(self.dropout(F.silu(hidden_states, inplace=in_place))) + residual


class SpadeUNet2DModel(ModelMixin, ConfigMixin):
    r"""
    U-Net that predicts the noise (or v, or the sample) of latents, guided by a semantic map through SPADE (thesis, Fig. 3.2).

    The modulation depends on the map alone: `compute_modulation` makes it once per map, and `forward(..., modulation=)` reuses it at
    every step of sampling. Without `modulation`, `forward` computes it by that very method, as in training.

    Args:
        sample_size: latent height and width it is meant for; information only, any multiple of `2 ** (levels - 1)` works.
        in_channels: channels of the input: noisy latents and the encoded map, 2c.
        out_channels: latent channels c.
        num_labels: labels k of the semantic map.
        block_out_channels: width of each level.
        layers_per_block: ResNet blocks of a level on the way down; one more on the way up.
        attention_levels: for each level, whether its ResNet blocks are followed by self-attention. The middle block always has it.
        attention_head_dim: channels of an attention head.
        norm_num_groups: groups of the group norms; must divide every width and every sum of widths that a skip connection makes.
        norm_eps: epsilon of the group norms.
        dropout: dropout probability inside the ResNet blocks.
        spade_blocks: where ResNet blocks are SPADE: "all", "mid_up", "up", or "none" (the LDM baseline: concatenation only).
        spade_hidden_channels: channels between the two convolutions that make γ and β.

    Example:
        >>> import torch
        >>> unet = SpadeUNet2DModel(block_out_channels=(16, 32), attention_levels=(False, False), norm_num_groups=8, attention_head_dim=8)
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
    ):
        super().__init__()
        if spade_blocks not in SPADE_BLOCKS:
            raise ValueError(f"`spade_blocks` is {spade_blocks!r}, but one of {list(SPADE_BLOCKS)} is needed.")
        if len(attention_levels) != len(block_out_channels):
            raise ValueError(
                f"`attention_levels` has {len(attention_levels)} entries, but `block_out_channels` has {len(block_out_channels)}."
            )
        wrong = [width for width in block_out_channels if width % norm_num_groups or width % attention_head_dim]
        if wrong:
            raise ValueError(
                f"`block_out_channels` contains {wrong[0]}, but each width must be a multiple of `norm_num_groups` ({norm_num_groups}) "
                f"and `attention_head_dim` ({attention_head_dim})."
            )
        self.gradient_checkpointing = False
        time_channels = 4 * block_out_channels[0]
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_channels)
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1)

        def resnet(channels_in, channels_out, part):
            hidden = spade_hidden_channels if part in SPADE_BLOCKS[spade_blocks] else None
            return SpadeResnetBlock2D(
                channels_in, channels_out, time_channels, num_labels, hidden, norm_num_groups, norm_eps, dropout
            )

        def attention(channels):
            return Attention(
                channels,
                heads=channels // attention_head_dim,
                dim_head=attention_head_dim,
                norm_num_groups=norm_num_groups,
                eps=norm_eps,
                residual_connection=True,
                bias=True,
            )

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
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def _modulated_blocks(self):
        """(block, level) of every SPADE ResNet block, in the order of `forward`."""
        levels, layers = len(self.config.block_out_channels), self.config.layers_per_block
        blocks = [(block, index // layers) for index, block in enumerate(self.down_resnets)]
        blocks += [(block, levels - 1) for block in self.mid_resnets]
        blocks += [(block, levels - 1 - index // (layers + 1)) for index, block in enumerate(self.up_resnets)]
        return [(block, level) for block, level in blocks if block.is_spade]

    @apply_forward_hook
    def compute_modulation(self, semantic_map: torch.Tensor, sample_size: int | tuple[int, int]) -> tuple:
        """γ and β of every SPADE layer for these maps; they depend on neither t nor z_t, so one call serves a whole sampling run.

        Args:
            semantic_map: integer labels 0..num_labels-1, (B, H, W), at image or latent resolution.
            sample_size: height and width of the latents; each divides that of the map.

        Returns:
            What `forward` takes as `modulation`. It holds about `4 * channels * h * w` values a SPADE block; drop it when done.

        Raises:
            ValueError: for labels outside the range, a floating dtype, or sizes that do not fit.
        """
        size = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        check_label_tensor(semantic_map, self.config.num_labels)
        pyramid = [
            max_pool_one_hot(semantic_map, (size[0] >> level, size[1] >> level), self.config.num_labels).to(self.dtype)
            for level in range(len(self.config.block_out_channels))
        ]
        return tuple(block.modulation(pyramid[level]) for block, level in self._modulated_blocks())

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        semantic_map: torch.Tensor | None = None,
        modulation: tuple | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple:
        """Predict from noisy latents.

        Args:
            sample: (B, in_channels, h, w): noisy latents and the encoded map, h and w multiples of `2 ** (levels - 1)`.
            timestep: a number, or (B,).
            semantic_map: integer labels (B, H, W), or (B / n, H, W) if every map has n consecutive images.
            modulation: from `compute_modulation`, instead of `semantic_map`.
            return_dict: whether to return `UNet2DOutput` or a tuple.
        """
        factor = 2 ** (len(self.config.block_out_channels) - 1)
        if sample.shape[-2] % factor or sample.shape[-1] % factor:
            raise ValueError(
                f"`sample` is {sample.shape[-2]}x{sample.shape[-1]}, but height and width must be multiples of {factor}."
            )
        if modulation is None:
            if self.config.spade_blocks == "none":
                modulation = ()
            elif semantic_map is None:
                raise ValueError("`semantic_map` and `modulation` are both None, but SPADE needs one of them.")
            else:
                modulation = self.compute_modulation(semantic_map, sample.shape[-2:])

        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], device=sample.device)
        timestep = timestep.reshape(-1).to(sample.device).expand(len(sample))
        embedding = self.time_embedding(self.time_proj(timestep).to(sample.dtype))

        modulations = iter(modulation)

        def run(block, hidden_states):
            block_modulation = next(modulations) if block.is_spade else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                return self._gradient_checkpointing_func(block, hidden_states, embedding, block_modulation)
            return block(hidden_states, embedding, block_modulation)

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
