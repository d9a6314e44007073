"""Lung CT slices from semantic maps, as a plug-in for Hugging Face diffusers."""

# Imported eagerly: diffusers' loader looks component classes up in `sys.modules` only.
from . import guidance, semantic_map
from .checkpoint import small_checkpoint
from .labels import SemanticLabel
from .models.nodule_classifier import NoduleClassifier
from .models.spade_gan import SpadeGenerator
from .models.unet_spade import SpadeUNet2DModel
from .pipeline_lsdm import LSDMGuidedPipeline, LSDMPipelineOutput
from .pipeline_spade_gan import SpadeGanPipeline
from .segmentation import semantic_map_from_hu
from .semantic_map import find_nodules
from .version import __version__

__all__ = [
    "__version__",
    "LSDMGuidedPipeline",
    "LSDMPipelineOutput",
    "NoduleClassifier",
    "SemanticLabel",
    "SpadeGanPipeline",
    "SpadeGenerator",
    "SpadeUNet2DModel",
    "find_nodules",
    "guidance",
    "semantic_map",
    "semantic_map_from_hu",
    "small_checkpoint",
]
