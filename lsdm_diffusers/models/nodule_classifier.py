"""Noise-aware classifiers of nodule crops, whose gradients guide sampling (thesis, Fig. 3.3, eq. 3.7, section 4.2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import DownBlock2D, UNetMidBlock2D
from diffusers.utils import BaseOutput
from torch import nn

from ..hounsfield import HU_RANGE, scaled_hu
from ..nodule_features import BENIGN_CLASS, HIGHEST_RATING, LOWEST_RATING, MALIGNANT_CLASS, NODULE_FEATURES

OBJECTIVES = ("classification", "regression")
MIDDLE_RATING = (LOWEST_RATING + HIGHEST_RATING) / 2
HALF_RATING_RANGE = (HIGHEST_RATING - LOWEST_RATING) / 2
# Width of the smooth steps at `hu_thresholds`: above image noise, small beside the 900 HU from lung to soft tissue.
STEP_WIDTH_HU = 60
STEP_WIDTH = STEP_WIDTH_HU * 2 / HU_RANGE  # the same in the models' units


@dataclass
class NoduleClassifierOutput(BaseOutput):
    """What a classifier says of crops.

    Args:
        prediction: logits (B, 2) of benign and malignant, or ratings (B,), about 1..5 and not clipped.
    """

    prediction: torch.Tensor


class NoduleClassifier(ModelMixin, ConfigMixin):
    r"""
    Encoder half and middle block of the U-Net without SPADE, with pooling and a linear head (thesis, Fig. 3.3).

    It judges a crop as the sampler sees it, D(noisy latent crop) at noise level t, so that its gradient guides every
    step.

    Args:
        feature: the rating it judges: "malignancy", "lobulation", "spiculation" or "texture".
        objective: "classification" (two classes, cross-entropy) or "regression" (the rating 1..5, squared error).
        in_channels: channels of the image.
        sample_size: edge in pixels of the crops it is meant for.
        block_out_channels: width of each level, multiples of `norm_num_groups`; the last one is a multiple of
            `attention_head_dim`. Each level but the last one ends with down-sampling: four levels take 64x64 pixels to
            8x8.
        layers_per_block: ResNet blocks of a level, at least 1.
        norm_num_groups: groups of the group norms.
        attention_head_dim: channels of a head of the middle block's self-attention.
        dropout: dropout probability inside the ResNet blocks, 0 <= dropout < 1.
        hu_thresholds: Hounsfield units. For each of them the network sees, beside the image, a smooth step of 60 HU
            from below to above it. Group norms forget absolute density; the steps tell ground glass from solid.

    Raises:
        ValueError: for an unknown `feature` or `objective`, or sizes outside the ranges above.

    Example:
        >>> import torch
        >>> classifier = NoduleClassifier(feature="texture", objective="regression")
        >>> classifier.log_prob(torch.zeros(2, 1, 64, 64), timestep=10, target=4).shape
        torch.Size([2])
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        feature: str = "malignancy",
        objective: str = "classification",
        in_channels: int = 1,
        sample_size: int = 64,
        block_out_channels: tuple[int, ...] = (24, 48, 72, 96),
        layers_per_block: int = 1,
        norm_num_groups: int = 12,
        attention_head_dim: int = 24,
        dropout: float = 0.0,
        hu_thresholds: tuple[float, ...] = (),
    ):
        super().__init__()
        if feature not in NODULE_FEATURES:
            raise ValueError(f"`feature` is {feature!r}, but one of {', '.join(NODULE_FEATURES)} is needed.")
        if objective not in OBJECTIVES:
            raise ValueError(f"`objective` is {objective!r}, but one of {', '.join(OBJECTIVES)} is needed.")
        uneven = [width for width in block_out_channels if width < 1 or width % norm_num_groups]
        if uneven or not block_out_channels:
            raise ValueError(
                f"`block_out_channels` is {tuple(block_out_channels)}, "
                f"but multiples of `norm_num_groups` = {norm_num_groups} are needed."
            )
        if block_out_channels[0] % 2:
            raise ValueError(
                f"`block_out_channels` begins with {block_out_channels[0]}, "
                "but the time embedding needs an even width."
            )
        if block_out_channels[-1] % attention_head_dim:
            raise ValueError(
                f"`attention_head_dim` is {attention_head_dim}, "
                f"but a divisor of the last width {block_out_channels[-1]} is needed."
            )
        if layers_per_block < 1:
            raise ValueError(f"`layers_per_block` is {layers_per_block}, but at least 1 is needed.")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` is {dropout}, but 0 <= dropout < 1 is needed.")
        time_channels = 4 * block_out_channels[0]
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_channels)
        thresholds = torch.tensor(hu_thresholds, dtype=torch.float32)
        self.register_buffer("steps_at", scaled_hu(thresholds)[None, :, None, None], persistent=False)
        self.conv_in = nn.Conv2d(in_channels * (1 + len(hu_thresholds)), block_out_channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        channels = block_out_channels[0]
        for level, width in enumerate(block_out_channels):
            self.down_blocks.append(
                DownBlock2D(
                    in_channels=channels,
                    out_channels=width,
                    temb_channels=time_channels,
                    dropout=dropout,
                    num_layers=layers_per_block,
                    resnet_groups=norm_num_groups,
                    add_downsample=level < len(block_out_channels) - 1,
                )
            )
            channels = width
        self.mid_block = UNetMidBlock2D(
            in_channels=channels,
            temb_channels=time_channels,
            dropout=dropout,
            resnet_groups=norm_num_groups,
            attention_head_dim=attention_head_dim,
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, channels)
        self.head = nn.Linear(channels, 2 if objective == "classification" else 1)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> NoduleClassifierOutput | tuple[torch.Tensor]:
        """Judge noisy crops.

        Args:
            sample: D of noisy latents, (B, in_channels, 64, 64), around [-1, 1]: -1 is -1024 HU, 1 is 800 HU.
            timestep: the training timestep whose noise the latents carry, 0..999; a number, or (B,).
            return_dict: whether to return `NoduleClassifierOutput` or a tuple.

        Returns:
            `NoduleClassifierOutput` with `prediction`, or a tuple of that tensor.
        """
        if not torch.is_tensor(timestep):
            timestep = torch.tensor([timestep], device=sample.device)
        timestep = timestep.reshape(-1).to(sample.device).expand(len(sample))
        embedding = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        steps = [torch.tanh((channel - self.steps_at) / STEP_WIDTH) for channel in sample.split(1, dim=1)]
        # `from_pretrained(dtype=...)` casts no buffer, so the steps may be of a wider type than the weights.
        hidden_states = self.conv_in(torch.cat([sample, *steps], dim=1).to(sample.dtype))
        for block in self.down_blocks:
            hidden_states, _ = block(hidden_states, embedding)
        hidden_states = self.mid_block(hidden_states, embedding)
        output: torch.Tensor = self.head(F.silu(self.norm_out(hidden_states)).mean(dim=(2, 3)))
        if self.config.objective == "regression":
            output = MIDDLE_RATING + HALF_RATING_RANGE * output[:, 0]  # a new regressor says 3
        return NoduleClassifierOutput(prediction=output) if return_dict else (output,)

    def log_prob(
        self,
        image: torch.Tensor,
        timestep: torch.Tensor | float | int,
        target: torch.Tensor | float | int,
        check_target: bool = True,
    ) -> torch.Tensor:
        """log p(target | image, t) up to a constant: minus the training loss, one value per sample (thesis, eq. 3.7).

        Args:
            image: D of noisy latents, (B, in_channels, 64, 64), as in `forward`.
            timestep: a number, or (B,), as in `forward`.
            target: class 0 (benign) or 1 (malignant), or the rating 1..5; a number, or (B,).
            check_target: whether to check the range of the targets. The check waits for the device; guidance checks
                the targets once, before its loop.

        Returns:
            Minus the cross-entropy, or minus the squared error, (B,).

        Raises:
            ValueError: for a target outside its range.
        """
        target = torch.as_tensor(target, device=image.device).expand(len(image))
        if check_target:
            self._check_target(target)
        output = self(image, timestep, return_dict=False)[0].float()
        if self.config.objective == "classification":
            return -F.cross_entropy(output, target.long(), reduction="none")
        squared_error: torch.Tensor = (output - target.float()) ** 2
        return -squared_error

    def _check_target(self, target: torch.Tensor) -> None:
        if self.config.objective == "classification":
            right, allowed = (target == BENIGN_CLASS) | (target == MALIGNANT_CLASS), "the class 0 or 1"
        else:
            right, allowed = (target >= LOWEST_RATING) & (target <= HIGHEST_RATING), "a rating 1..5"
        wrong = target[~right]
        if len(wrong):
            raise ValueError(f"`target` contains {wrong[0].item()}, but {allowed} is needed.")
