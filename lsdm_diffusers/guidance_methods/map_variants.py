"""What the U-Net predicts around nodules where their map says something else than the map that is sampled."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL

from ..latents import encode_map
from ..models.group_norm import replayed_norms
from ..models.unet_spade import SpadeUNet2DModel
from ..nodule_batch import NoduleRequest
from .step import GuidedStep
from .windows import Window, close_windows, cut_modulation, guided_areas, stack_modulations, whole_slices, window_edge


@dataclass(frozen=True)
class MapVariant:
    """Another version of the maps of a call.

    Args:
        labels: (B, H, W), integer labels.
        ratings: (B, rating_channels, H, W), or None for no rating.
        requests: the nodules that it differs in, one or more.
    """

    labels: torch.Tensor
    ratings: torch.Tensor | None
    requests: Sequence[NoduleRequest]


class MapVariants:
    """Evaluates the U-Net on variants of the maps, in windows around the nodules, all windows in one batch.

    Inside a window the group norms take the statistics of the whole slice, which each step records, so that the output
    can be compared with that of the whole slice. Self-attention sees the window alone. Whole slices are evaluated
    where windows would cost more, or where the U-Net is compiled, whose norms keep no statistics.

    Args:
        unet, vae: of the pipeline.
        variants: one or more.
        images_per_map: images of each map, which follow one another in the batch of latents.
        windowed: False evaluates whole slices in any case.
    """

    def __init__(
        self,
        unet: SpadeUNet2DModel,
        vae: AutoencoderKL,
        variants: Sequence[MapVariant],
        images_per_map: int,
        windowed: bool = True,
    ):
        self.unet, self.images_per_map = unet, images_per_map
        height, width = variants[0].labels.shape[-2:]
        device = variants[0].labels.device
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        multiple = 2 ** (len(unet.config.block_out_channels) - 1)
        size = (height // factor, width // factor)

        areas = [guided_areas(variant.requests, (height, width), factor) for variant in variants]
        windows = [whole_slices(areas_of_variant) for areas_of_variant in areas]
        edge = window_edge([area for areas_of_variant in areas for area in areas_of_variant], multiple)
        cost, whole_cost = sum(map(len, areas)) * edge**2, sum(map(len, windows)) * size[0] * size[1]
        is_compiled = any(getattr(module, "_compiled_call_impl", None) for module in unet.modules())
        self.windowed = windowed and edge <= min(size) and cost < whole_cost and not is_compiled
        if self.windowed:
            windows = [close_windows(areas_of_variant, edge, multiple) for areas_of_variant in areas]

        self.counts = [len(windows_of_variant) for windows_of_variant in windows]
        self.windows = [window for windows_of_variant in windows for window in windows_of_variant]
        self.masks = torch.stack([window.mask for window in self.windows]).to(device)[:, None]
        firsts = torch.tensor([window.map_index * images_per_map for window in self.windows], device=device)
        self.images = (firsts[:, None] + torch.arange(images_per_map, device=device)).flatten()
        map_latents, modulations = [], []
        for variant, windows_of_variant in zip(variants, windows, strict=True):
            latents = encode_map(vae, variant.labels).to(unet.dtype)
            map_latents += [window.cut(latents[window.map_index]) for window in windows_of_variant]
            if unet.config.spade_blocks != "none":
                modulation = unet.compute_modulation(variant.labels.long(), size, variant.ratings)
                modulations.append(cut_modulation(modulation, windows_of_variant, size[0]))
        self.map_latents = torch.stack(map_latents).repeat_interleave(images_per_map, dim=0)
        self.modulation = stack_modulations(modulations) if modulations else ()

    def differences(self, step: GuidedStep) -> list[torch.Tensor]:
        """M·[v(variant) - v(map)] of each variant, (B, c, h, w), zero outside its nodules."""
        n = self.images_per_map
        cut = [window.cut(step.model_input[image]) for window, image in self._window_images()]
        model_input = torch.cat([torch.stack(cut), self.map_latents], dim=1)
        with replayed_norms(step.norm_statistics, self.images) if self.windowed else nullcontext():
            outputs = self.unet(model_input, step.timestep, modulation=self.modulation).sample
        plain = torch.stack([window.cut(step.model_output[image]) for window, image in self._window_images()])
        changes = (outputs.to(plain.dtype) - plain) * self.masks.repeat_interleave(n, dim=0)
        differences = []
        for first, count in zip(torch.tensor([0, *self.counts]).cumsum(0).tolist(), self.counts, strict=False):
            difference = torch.zeros_like(step.model_output)
            pairs = self._window_images()[first * n : (first + count) * n]
            for (window, image), change in zip(pairs, changes[first * n : (first + count) * n], strict=True):
                window.cut(difference[image]).add_(change)
            differences.append(difference)
        return differences

    def _window_images(self) -> list[tuple[Window, int]]:
        n = self.images_per_map
        return [(window, window.map_index * n + copy) for window in self.windows for copy in range(n)]
