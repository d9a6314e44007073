"""What the pipelines from semantic maps to CT slices share: loading from the Hub, reading of maps, output types."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download

from .hounsfield import grey_from_hu, hu_from_scaled
from .semantic_map import read_semantic_map

MapSource = PIL.Image.Image | np.ndarray | torch.Tensor | str | Path
MapSources = MapSource | Sequence[MapSource]
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
PIXEL_OUTPUT_TYPES = ("pil", "np", "pt", "hu")


@dataclass
class LSDMPipelineOutput(BaseOutput):
    """Generated slices, the images of each map one after the other.

    Args:
        images: list of PIL images of mode "L" ("pil"), array (N, H, W, 1) in [0, 1] ("np"), tensor (N, 1, H, W) in
            [0, 1] ("pt"), `int16` array (N, H, W) in Hounsfield units ("hu"), or latents (N, c, H / f, W / f)
            ("latent"). [0, 1] spans -1024..800 HU.
        semantic_maps: labels 0..7, (B, H, W), uint8: the maps that the images were drawn from. Guidance by "contrast"
            and "classifier_free" changes labels of nodules, and "outline" their outlines.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    semantic_maps: np.ndarray | None = None


class SemanticMapPipeline(DiffusionPipeline):
    """Base of the pipelines: downloads no code, reads maps of every form, and converts pixels to every output type."""

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch configs and safetensors of a Hub repository into the cache, and nothing that could be run.

        The base method refuses component classes of an installed package ("... is not a module in
        'diffusers/pipelines'").

        Args:
            pretrained_model_name: id of the repository on the Hub.
            kwargs: those of `DiffusionPipeline.download`; those on code are ignored.

        Returns:
            The folder in the cache.
        """
        options: dict[str, Any] = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        variant = kwargs.get("variant")
        if variant is None:
            options |= {"allow_patterns": ["*.json", "*.safetensors"], "ignore_patterns": ["*.*.safetensors"]}
        else:
            options |= {"allow_patterns": ["*.json", f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"]}
        return str(snapshot_download(pretrained_model_name, **options))

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """Offload the components by groups of layers, as diffusers does, with the same arguments.

        On disk (`offload_to_disk_path`) each component gets a folder of its own. Diffusers gives all of them one
        folder and names the files after the layers, so that components with equal names of layers would read each
        other's weights. It also takes a file that is already there instead of writing it.

        Raises:
            ValueError: if a component's folder already has files; its weights would be taken.
        """
        given = inspect.signature(super().enable_group_offload).bind(*args, **kwargs).arguments
        folder = given.pop("offload_to_disk_path", None)
        if folder is None:
            super().enable_group_offload(*args, **kwargs)
            return
        excluded = given.pop("exclude_modules", None) or []
        excluded = [excluded] if isinstance(excluded, str) else excluded
        parts: dict[str, Any] = self.components
        names = [name for name, part in parts.items() if isinstance(part, torch.nn.Module)]
        modules: dict[str, Any] = {name: parts[name] for name in names}
        folders = {name: Path(folder) / name for name in modules if name not in excluded}
        for own_folder in folders.values():
            if own_folder.exists() and any(own_folder.iterdir()):
                raise ValueError(
                    f"`offload_to_disk_path` is {folder}, but {own_folder} already has files, whose weights would be "
                    "taken; an empty folder is needed."
                )
        for name, module in modules.items():
            if name in folders:
                module.enable_group_offload(**given, offload_to_disk_path=str(folders[name]))
            else:
                module.to(given["onload_device"])

    @staticmethod
    def _read_maps(semantic_map: MapSources, multiple: int) -> np.ndarray:
        """Labels (B, H, W) of one map, a batch or a list of maps; H and W must be multiples of `multiple`."""
        sources: Sequence[Any] = semantic_map if isinstance(semantic_map, (list, tuple)) else [semantic_map]
        if not sources:
            raise ValueError("`semantic_map` is an empty list, but at least one map is needed.")
        stacks = [read_semantic_map(source) for source in sources]
        maps = [one_map for stack in stacks for one_map in stack.reshape(-1, *stack.shape[-2:])]
        sizes = {one_map.shape for one_map in maps}
        if len(sizes) > 1:
            raise ValueError(f"`semantic_map` has maps of sizes {sorted(sizes)}, but one call takes maps of one size.")
        height, width = maps[0].shape
        if height % multiple or width % multiple:
            raise ValueError(
                f"`semantic_map` is {height}x{width} pixels, but height and width must be multiples of {multiple}."
            )
        return np.stack(maps)

    @staticmethod
    def _check_output_type(output_type: str, allowed: Sequence[str]) -> None:
        if output_type not in allowed:
            raise ValueError(f"`output_type` is {output_type!r}, but one of {', '.join(allowed)} is needed.")

    @staticmethod
    def _check_count(name: str, count: int) -> None:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"`{name}` is {count!r}, but a whole number of at least 1 is needed.")

    @staticmethod
    def _check_generators(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> None:
        generators = generator if isinstance(generator, list) else [generator]
        for one in generators:
            if one is not None and not isinstance(one, torch.Generator):
                raise ValueError(
                    f"`generator` is {generator!r}, but a `torch.Generator`, such as "
                    "`torch.Generator().manual_seed(3)`, or a list with one per image is needed."
                )
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` is a list of {len(generator)}, but the call makes {batch_size} images.")

    @staticmethod
    def _postprocess(pixels: torch.Tensor, output_type: str) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Convert pixels (N, 1, H, W) in [-1, 1], on the CPU, to what `output_type` names."""
        unit = (pixels + 1) / 2
        if output_type == "pt":
            return unit
        if output_type == "np":
            return unit.permute(0, 2, 3, 1).numpy()
        hu = hu_from_scaled(pixels[:, 0])
        if output_type == "hu":
            return hu.round().to(torch.int16).numpy()
        return [PIL.Image.fromarray(grey) for grey in grey_from_hu(hu.numpy())]
