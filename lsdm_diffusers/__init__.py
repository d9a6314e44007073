"""Lung CT slices from semantic maps, as a plug-in for Hugging Face diffusers."""

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import guidance, semantic_map
    from .checkpoint import small_checkpoint
    from .labels import SemanticLabel
    from .models.nodule_classifier import NoduleClassifier
    from .models.spade_gan import SpadeGenerator
    from .models.unet_spade import SpadeUNet2DModel
    from .nodule_outline import reshape_nodule
    from .pipeline_lsdm import LSDMGuidedPipeline
    from .pipeline_lsdm_inpaint import LSDMInpaintOutput, LSDMInpaintPipeline
    from .pipeline_spade_gan import SpadeGanPipeline
    from .segmentation import semantic_map_from_hu
    from .semantic_map import find_nodules
    from .semantic_map_pipeline import LSDMPipelineOutput
    from .series_edits import change_nodule_3d, insert_nodule_3d, remove_nodule_3d
    from .slice_edits import change_nodule, insert_nodule, remove_nodule

__all__ = [
    "__version__",
    "LSDMGuidedPipeline",
    "LSDMInpaintOutput",
    "LSDMInpaintPipeline",
    "LSDMPipelineOutput",
    "NoduleClassifier",
    "SemanticLabel",
    "SpadeGanPipeline",
    "SpadeGenerator",
    "SpadeUNet2DModel",
    "change_nodule",
    "change_nodule_3d",
    "find_nodules",
    "guidance",
    "insert_nodule",
    "insert_nodule_3d",
    "remove_nodule",
    "remove_nodule_3d",
    "reshape_nodule",
    "semantic_map",
    "semantic_map_from_hu",
    "small_checkpoint",
]

# Torch and diffusers take seconds to import. Nothing that needs them is loaded before it is used (PEP 562), so that
# `lsdm-generate --help` and `__version__` come at once.
_MODULES = {  # the modules behind the public names, each with the names that it gives
    "checkpoint": ["small_checkpoint"],
    "guidance": [],
    "labels": ["SemanticLabel"],
    "models.nodule_classifier": ["NoduleClassifier"],
    "models.spade_gan": ["SpadeGenerator"],
    "models.unet_spade": ["SpadeUNet2DModel"],
    "nodule_outline": ["reshape_nodule"],
    "pipeline_lsdm": ["LSDMGuidedPipeline", "LSDMPipelineOutput"],
    "pipeline_lsdm_inpaint": ["LSDMInpaintOutput", "LSDMInpaintPipeline"],
    "pipeline_spade_gan": ["SpadeGanPipeline"],
    "segmentation": ["semantic_map_from_hu"],
    "semantic_map": ["find_nodules"],
    "series_edits": ["change_nodule_3d", "insert_nodule_3d", "remove_nodule_3d"],
    "slice_edits": ["change_nodule", "insert_nodule", "remove_nodule"],
}


if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        submodules = {module.partition(".")[0] for module in _MODULES}
        if name not in __all__ and name not in submodules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # All at once: diffusers' loader looks the classes of a checkpoint's components up in `sys.modules` only, so
        # the modules that checkpoints name must be there however the package is used first.
        for module, names in _MODULES.items():
            loaded = importlib.import_module(f"{__name__}.{module}")
            globals().update({public: getattr(loaded, public) for public in names})
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
