"""SpadeGanPipeline: semantic map in, CT slice out, in one pass of a generator (Park et al. 2019); the baseline."""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from .models.spade_gan import SpadeGenerator
from .semantic_map_pipeline import PIXEL_OUTPUT_TYPES, LSDMPipelineOutput, MapSources, SemanticMapPipeline


class SpadeGanPipeline(SemanticMapPipeline):
    r"""
    Generates lung CT slices from semantic maps with a `SpadeGenerator`.

    Args:
        spade_generator: the generator; with `latent_dim` 0 it makes one image of a map.

    Example:
        >>> from lsdm_diffusers import SpadeGanPipeline
        >>> pipe = SpadeGanPipeline.from_pretrained("spade-gan/pipeline")  # doctest: +SKIP
        >>> pipe("map.png").images[0].save("ct.png")  # doctest: +SKIP
    """

    model_cpu_offload_seq = "spade_generator"

    spade_generator: SpadeGenerator

    def __init__(self, spade_generator: SpadeGenerator) -> None:
        super().__init__()
        self.register_modules(spade_generator=spade_generator)

    @torch.no_grad()
    def __call__(
        self,
        semantic_map: MapSources,
        num_images_per_map: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> LSDMPipelineOutput | tuple[Any, ...]:
        """Generate `num_images_per_map` slices of each map.

        Args:
            semantic_map: PIL image, array, tensor or path (PNG, .npy, NIfTI) of one map (H, W), a batch (B, H, W), or
                a list of them; integer labels 0..7, H and W multiples of the generator's `scale_factor`.
            num_images_per_map: images of each map; more than one needs a `spade_generator` with `latent_dim` above 0.
            generator: one generator, or a list with one per image, of the noise z; with `latent_dim` 0 nothing is
                drawn from it.
            output_type: "pil" (mode L), "np" or "pt" in [0, 1], "hu" (int16).
            return_dict: whether to return `LSDMPipelineOutput` or a tuple.

        Raises:
            ValueError: for a bad argument, which is named, before any work is done.
        """
        self._check_output_type(output_type, PIXEL_OUTPUT_TYPES)
        self._check_count("num_images_per_map", num_images_per_map)
        latent_dim, factor = self.spade_generator.config.latent_dim, self.spade_generator.scale_factor
        if num_images_per_map > 1 and not latent_dim:
            raise ValueError(
                f"`num_images_per_map` is {num_images_per_map}, but `spade_generator` has `latent_dim` 0 and makes "
                "one image of a map: 1 is needed."
            )
        maps = self._read_maps(semantic_map, factor)
        batch_size = len(maps) * num_images_per_map
        self._check_generators(generator, batch_size)

        device = self._execution_device
        noise: list[torch.Tensor | None] = [None] * len(maps)
        if latent_dim:
            shape = (batch_size, latent_dim, maps.shape[1] // factor, maps.shape[2] // factor)
            # drawn in float32 whatever the generator's dtype is: a seed names one noise
            drawn = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
            noise = list(drawn.to(self.spade_generator.dtype).split(num_images_per_map))
        labels = torch.from_numpy(maps).long().to(device)
        # map by map: an image must not depend on its neighbours, and a batch of full slices is the peak of memory
        pixels = [self.spade_generator(m[None], z).sample.float().cpu() for m, z in zip(labels, noise, strict=True)]
        images = self._postprocess(torch.cat(pixels), output_type)
        self.maybe_free_model_hooks()
        output = LSDMPipelineOutput(images=images, semantic_maps=maps)
        return output if return_dict else output.to_tuple()
