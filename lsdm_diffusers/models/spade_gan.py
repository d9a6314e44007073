"""The SPADE baseline: a generator modulated by a semantic map, and its discriminators.

Park et al. 2019, "Semantic Image Synthesis with Spatially-Adaptive Normalization", arXiv:1903.07291.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ..labels import NUM_LABELS, check_label_tensor, max_pool_one_hot
from .patch_discriminator import LEAKY_SLOPE, SMALLEST_EDGE, PatchDiscriminator
from .unet_spade import SpadeNorm


class SpadeGeneratorBlock(nn.Module):
    """ResNet block of SPADE - leaky ReLU - conv3x3, twice (Park et al. 2019, Fig. 4).

    Where the width changes, the shortcut is SPADE - conv1x1.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        num_labels: labels k of the semantic map.
        hidden_channels: channels between SPADE's two convolutions.
        num_groups: groups of the norms.
        eps: epsilon of the norms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_labels: int, hidden_channels: int, num_groups: int, eps: float
    ):
        super().__init__()
        middle_channels = min(in_channels, out_channels)
        self.norm1 = SpadeNorm(in_channels, num_labels, hidden_channels, num_groups, eps)
        self.conv1 = nn.Conv2d(in_channels, middle_channels, 3, padding=1)
        self.norm2 = SpadeNorm(middle_channels, num_labels, hidden_channels, num_groups, eps)
        self.conv2 = nn.Conv2d(middle_channels, out_channels, 3, padding=1)
        self.shortcut_norm: SpadeNorm | None = None
        if in_channels != out_channels:
            self.shortcut_norm = SpadeNorm(in_channels, num_labels, hidden_channels, num_groups, eps)
            self.shortcut_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
        """Take (n·B, in_channels, h, w) and the one-hot map (B, num_labels, h, w) to (n·B, out_channels, h, w)."""
        residual = hidden_states
        if self.shortcut_norm is not None:
            residual = self.shortcut_conv(self.shortcut_norm(hidden_states, self.shortcut_norm.modulation(one_hot)))
        hidden_states = self.norm1(hidden_states, self.norm1.modulation(one_hot))
        hidden_states = self.conv1(F.leaky_relu(hidden_states, LEAKY_SLOPE))
        hidden_states = self.norm2(hidden_states, self.norm2.modulation(one_hot))
        hidden_states = self.conv2(F.leaky_relu(hidden_states, LEAKY_SLOPE))
        return hidden_states + residual


@dataclass
class SpadeGeneratorOutput(BaseOutput):
    """What the generator draws.

    Args:
        sample: images (B, out_channels, H, W) in [-1, 1].
    """

    sample: torch.Tensor


class SpadeGenerator(ModelMixin, ConfigMixin):
    r"""
    Generator of SPADE blocks and nearest up-sampling: takes a semantic map, and noise if it has any, to a CT slice.

    It starts from the map at 1 / `scale_factor` of its size (Park et al. 2019, appendix A, without the image encoder).
    With `latent_dim`, each position there also has its own noise z ~ N(0, 1), which one linear layer brings in. So
    samples of one map differ.

    It differs from Park et al. in these points:

    - z has a value at each position, and not one vector for the image, so that maps of any size fit.
    - Maps are max-pooled, and not sub-sampled, so that no nodule vanishes.
    - SPADE normalises groups of channels of one image, as in `SpadeUNet2DModel`, and not a batch over all GPUs, so
      that an image does not depend on its neighbours.
    - Each level has one block; there is no second one at the second level.
    - The encoder of a style image and the generator's spectral norm are left out. The discriminators have spectral
      norm.

    Args:
        num_labels: labels k of the semantic map.
        out_channels: channels of the image.
        block_out_channels: width of each level, from the full resolution to the coarsest; each level has twice the
            size of the next one.
        spade_hidden_channels: channels between the two convolutions that make γ and β.
        norm_num_groups: groups of the group norms, a divisor of every width.
        norm_eps: epsilon of the group norms.
        latent_dim: channels of z; 0 for a generator without noise, which makes one image of a map.

    Raises:
        ValueError: for no width, widths that the groups do not divide, or a negative `latent_dim`.

    Example:
        >>> import torch
        >>> generator = SpadeGenerator(block_out_channels=(8, 16, 16), spade_hidden_channels=8, norm_num_groups=4)
        >>> generator(torch.zeros(1, 64, 96, dtype=torch.long)).sample.shape
        torch.Size([1, 1, 64, 96])
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["SpadeGeneratorBlock"]
    _no_split_modules = ["SpadeGeneratorBlock"]
    _skip_layerwise_casting_patterns = ["norm1.norm", "norm2.norm", "shortcut_norm.norm"]

    @register_to_config
    def __init__(
        self,
        num_labels: int = NUM_LABELS,
        out_channels: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 1024),
        spade_hidden_channels: int = 128,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        latent_dim: int = 0,
    ):
        super().__init__()
        wrong = [width for width in block_out_channels if width % norm_num_groups]
        if wrong or not block_out_channels:
            raise ValueError(
                f"`block_out_channels` is {tuple(block_out_channels)}, "
                f"but at least one width, each a multiple of `norm_num_groups` ({norm_num_groups}), is needed."
            )
        if latent_dim < 0:
            raise ValueError(f"`latent_dim` is {latent_dim}, but 0 (no noise) or more is needed.")
        self.gradient_checkpointing = False
        channels = block_out_channels[-1]
        self.conv_in = nn.Conv2d(num_labels, channels, 3, padding=1)
        self.latent_proj = nn.Conv2d(latent_dim, channels, 1) if latent_dim else None
        self.blocks = nn.ModuleList()
        for width in reversed(block_out_channels):
            self.blocks.append(
                SpadeGeneratorBlock(channels, width, num_labels, spade_hidden_channels, norm_num_groups, norm_eps)
            )
            channels = width
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    @property
    def scale_factor(self) -> int:
        """Edge of the image over that of the coarsest level. It must divide height and width of every map."""
        return 1 << (len(self.config.block_out_channels) - 1)

    def forward(
        self, semantic_map: torch.Tensor, latents: torch.Tensor | None = None, return_dict: bool = True
    ) -> SpadeGeneratorOutput | tuple[torch.Tensor]:
        """Generate slices.

        Args:
            semantic_map: integer labels 0..num_labels-1, (B, H, W), H and W multiples of `scale_factor`.
            latents: z, (n·B, latent_dim, H / scale_factor, W / scale_factor), n consecutive ones of each map; None
                where `latent_dim` is 0.
            return_dict: whether to return `SpadeGeneratorOutput` or a tuple.

        Returns:
            `SpadeGeneratorOutput` with `sample`: images (n·B, out_channels, H, W) in [-1, 1], which is -1024..800 HU;
            (B, ...) without `latents`. Or a tuple of that tensor.

        Raises:
            ValueError: for labels outside the range, a floating dtype, or sizes that do not fit.
        """
        check_label_tensor(semantic_map, self.config.num_labels)
        height, width = semantic_map.shape[1:]
        if height % self.scale_factor or width % self.scale_factor:
            raise ValueError(
                f"`semantic_map` is {height}x{width} pixels, "
                f"but height and width must be multiples of {self.scale_factor}."
            )
        self._check_latents(latents, semantic_map)

        def one_hot(level: int) -> torch.Tensor:
            size = (height >> level, width >> level)
            return max_pool_one_hot(semantic_map, size, self.config.num_labels).to(self.dtype)

        level = len(self.blocks) - 1
        hidden_states = self.conv_in(one_hot(level))
        if self.latent_proj is not None and latents is not None:
            images_per_map = len(latents) // len(semantic_map)
            hidden_states = hidden_states.repeat_interleave(images_per_map, dim=0) + self.latent_proj(latents)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, one_hot(level))
            else:
                hidden_states = block(hidden_states, one_hot(level))
            if level > 0:
                hidden_states = F.interpolate(hidden_states, scale_factor=2.0, mode="nearest")
            level -= 1
        sample = torch.tanh(self.conv_out(F.leaky_relu(hidden_states, LEAKY_SLOPE)))
        return SpadeGeneratorOutput(sample=sample) if return_dict else (sample,)

    def _check_latents(self, latents: torch.Tensor | None, semantic_map: torch.Tensor) -> None:
        latent_dim, (batch_size, height, width) = self.config.latent_dim, semantic_map.shape
        if latent_dim == 0:
            if latents is not None:
                raise ValueError(
                    f"`latents` has shape {tuple(latents.shape)}, but `latent_dim` is 0, so None is needed."
                )
            return
        shape = (latent_dim, height // self.scale_factor, width // self.scale_factor)
        if latents is None or latents.shape[1:] != shape or len(latents) % batch_size or len(latents) == 0:
            given = "None" if latents is None else f"of shape {tuple(latents.shape)}"
            needed = ", ".join(map(str, shape))
            raise ValueError(f"`latents` is {given}, but (n·{batch_size}, {needed}), n images of each map, is needed.")


class MultiscaleDiscriminator(nn.Module):
    """PatchGAN discriminators of image and map at several scales (Wang et al. 2018; Park et al. 2019).

    The first one sees the full size, each other one half the size of the one before. Every convolution has spectral
    norm.

    Args:
        num_labels: labels k of the semantic map.
        image_channels: channels of the image.
        channels: first width of each discriminator.
        num_scales: number of discriminators, at least 1; images need edges of 32 · 2^(num_scales - 1) at least.

    Raises:
        ValueError: for `num_scales` below 1.
    """

    def __init__(self, num_labels: int = NUM_LABELS, image_channels: int = 1, channels: int = 64, num_scales: int = 2):
        super().__init__()
        if num_scales < 1:
            raise ValueError(f"`num_scales` is {num_scales}, but at least 1 is needed.")
        self.num_labels = num_labels
        self.scales = nn.ModuleList(
            [PatchDiscriminator(channels, image_channels + num_labels) for _ in range(num_scales)]
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)

    def forward(self, image: torch.Tensor, semantic_map: torch.Tensor) -> list[list[torch.Tensor]]:
        """Judge images.

        Args:
            image: (B, image_channels, H, W) in [-1, 1].
            semantic_map: integer labels of each image, (B, H, W).

        Returns:
            For each scale, the features (B, c, h, w) after each activation, and last the logits (B, 1, h, w). A logit
            above 0 means real.

        Raises:
            ValueError: for an image too small for the coarsest scale.
        """
        height, width = image.shape[-2:]
        smallest = SMALLEST_EDGE * 2 ** (len(self.scales) - 1)
        if min(height, width) < smallest:
            raise ValueError(
                f"`image` is {height}x{width} pixels, but {len(self.scales)} scales need edges of {smallest} at least."
            )
        one_hot = max_pool_one_hot(semantic_map, (height, width), self.num_labels)
        scale_input = torch.cat([image, one_hot.to(image.dtype)], dim=1)
        outputs = []
        for index, scale in enumerate(self.scales):
            if index > 0:
                scale_input = F.avg_pool2d(scale_input, 3, stride=2, padding=1, count_include_pad=False)
            features, hidden_states = [], scale_input
            for layer in scale.children():
                hidden_states = layer(hidden_states)
                if isinstance(layer, nn.LeakyReLU):
                    features.append(hidden_states)
            outputs.append([*features, hidden_states])
        return outputs
