"""What the pipelines from semantic maps to CT slices share: loading from the Hub, reading of maps, output types."""

import inspect
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download

from .hounsfield import HU_MAX, HU_MIN
from .semantic_map import read_semantic_map


@dataclass
class LSDMPipelineOutput(BaseOutput):
    """Generated slices, the images of each map one after the other.

    Args:
        images: list of PIL images of mode "L" ("pil"), array (N, H, W, 1) in [0, 1] ("np"), tensor (N, 1, H, W) in [0, 1] ("pt"),
            `int16` array (N, H, W) in Hounsfield units ("hu"), or latents (N, c, H / f, W / f) ("latent"). [0, 1] spans -1024..800 HU.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor


class SemanticMapPipeline(DiffusionPipeline):
    """Base of the pipelines: it downloads no code, takes maps in every form that `read_semantic_map` takes, and names its output types."""

    @classmethod
    def download(cls, pretrained_model_name, **kwargs):
        """Fetch configs and safetensors of a Hub repository into the cache, and nothing that could be run.

        The base method refuses component classes of an installed package ("... is not a module in 'diffusers/pipelines'").
        """
        hub = {
            name: kwargs[name]
            for name in ("cache_dir", "force_download", "local_files_only", "token", "revision", "proxies")
            if kwargs.get(name) is not None and name in inspect.signature(snapshot_download).parameters
        }
        variant = kwargs.get("variant")
        weights = {"allow_patterns": ["*.json", f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"]}
        if variant is None:
            weights = {"allow_patterns": ["*.json", "*.safetensors"], "ignore_patterns": ["*.*.safetensors"]}
        return snapshot_download(pretrained_model_name, **weights, **hub)

    @staticmethod
    def _read_maps(semantic_map, multiple: int) -> np.ndarray:
        """One map, a batch or a list of maps as labels (B, H, W); H and W must be multiples of `multiple`."""
        maps = (
            [read_semantic_map(m) for m in semantic_map]
            if isinstance(semantic_map, (list, tuple))
            else [read_semantic_map(semantic_map)]
        )
        if not maps:
            raise ValueError("`semantic_map` is an empty list, but at least one map is needed.")
        maps = [single for m in maps for single in (m[None] if m.ndim == 2 else m)]
        if len({m.shape for m in maps}) > 1:
            raise ValueError(
                f"`semantic_map` has maps of sizes {sorted({m.shape for m in maps})}, but one call takes maps of one size."
            )
        height, width = maps[0].shape
        if height % multiple or width % multiple:
            raise ValueError(
                f"`semantic_map` is {height}x{width} pixels, but height and width must be multiples of {multiple}."
            )
        return np.stack(maps)

    @staticmethod
    def _postprocess(pixels: torch.Tensor, output_type: str):
        """[-1, 1] pixels (N, 1, H, W) to what `output_type` names."""
        unit = (pixels + 1) / 2
        if output_type == "pt":
            return unit
        if output_type == "np":
            return unit.permute(0, 2, 3, 1).numpy()
        if output_type == "hu":
            return (unit[:, 0] * (HU_MAX - HU_MIN) + HU_MIN).round().to(torch.int16).numpy()
        return [PIL.Image.fromarray(image) for image in (unit[:, 0] * 255).round().to(torch.uint8).numpy()]
