"""What a user asks the page for: jobs, their defaults, and the limits of each setting."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch

from ..nodule_features import NODULE_FEATURES, feature_target
from ..sampling_defaults import (
    CLASSIFIER,
    CLASSIFIER_FREE,
    CONTRAST,
    GRAIN,
    GUIDANCE_SCALE,
    NUM_STEPS,
    RECOMMENDED_SCALES,
)
from ..semantic_map import find_nodules
from ..version import __version__
from .packed_array import MAX_EDGE

SAMPLERS: dict[str, type[diffusers.SchedulerMixin]] = {
    "DPM-Solver++": diffusers.DPMSolverMultistepScheduler,
    "UniPC": diffusers.UniPCMultistepScheduler,
    "DDIM": diffusers.DDIMScheduler,
    "Euler": diffusers.EulerDiscreteScheduler,
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "DDPM": diffusers.DDPMScheduler,
}
MALIGNANCY_METHODS = (CLASSIFIER_FREE, CONTRAST, CLASSIFIER)
SIZES = (512, 384, 256)  # pixels of the longer edge that the page offers
MIN_SIZE, MAX_SIZE = 32, MAX_EDGE
MAX_STEPS, MAX_IMAGES, MAX_SCALE, MAX_GRAIN = 200, 8, 64, 4
MAX_SEED = 2**32

DEFAULT_SAMPLER = "DPM-Solver++"
DEFAULT_STEPS = NUM_STEPS
DEFAULT_SCALE = GUIDANCE_SCALE
DEFAULT_SEED = 0
DEFAULT_IMAGES = 1
DEFAULT_MALIGNANCY_METHOD = CONTRAST
DEFAULT_GRAIN = GRAIN


@dataclass(frozen=True)
class Job:
    """One slice to make.

    Args:
        semantic_map: labels 0..7, (H, W).
        pixel_spacing: edge of a pixel in mm.
        features: a dict for each nodule of the map, in the order of `find_nodules`.
        guidance_scale: of lobulation, spiculation and texture, 0..64; 0 is no guidance.
        malignancy_scale: of malignancy, 0..64.
        malignancy_method: what guides malignancy, one of `MALIGNANCY_METHODS`.
        grain: CT noise added to the slice, 0..4.
        sampler: one of `SAMPLERS`.
        num_inference_steps: 1..200.
        seed: of the noise.
        title: what the page calls the slice.
    """

    semantic_map: np.ndarray
    pixel_spacing: float
    features: list[dict[str, Any]]
    guidance_scale: float = DEFAULT_SCALE
    sampler: str = DEFAULT_SAMPLER
    num_inference_steps: int = DEFAULT_STEPS
    seed: int = DEFAULT_SEED
    title: str = ""
    malignancy_scale: float = RECOMMENDED_SCALES[DEFAULT_MALIGNANCY_METHOD]
    malignancy_method: str = DEFAULT_MALIGNANCY_METHOD
    grain: float = DEFAULT_GRAIN

    @property
    def scales(self) -> dict[str, float]:
        """The guidance scale of each feature."""
        return {**dict.fromkeys(NODULE_FEATURES, self.guidance_scale), "malignancy": self.malignancy_scale}

    def parameters(self) -> dict[str, Any]:
        """Everything that makes the slice, for its JSON file."""
        nodules = [
            {
                "centroid_yx": [round(coordinate, 1) for coordinate in nodule.centroid_yx],
                "label": int(nodule.label),
                "features": features,
            }
            for nodule, features in zip(find_nodules(self.semantic_map), self.features, strict=True)
        ]
        return {
            "title": self.title,
            "nodules": nodules,
            "guidance_scale": self.scales,
            "malignancy_method": self.malignancy_method,
            "grain": self.grain,
            "sampler": self.sampler,
            "num_inference_steps": self.num_inference_steps,
            "seed": self.seed,
            "versions": {
                "lsdm_diffusers": __version__,
                "diffusers": diffusers.__version__,
                "torch": torch.__version__,
            },
        }


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Check a setting that counts something.

    Raises:
        ValueError: unless `value` is a whole number low..high.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or int(value) != value:
        raise ValueError(f"`{name}` is {value!r}, but a whole number {low}..{high} is needed.")
    return int(value)


def number(name: str, value: Any, high: float) -> float:
    """Check a setting that is a number of 0..`high`.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= high:
        raise ValueError(f"`{name}` is {value!r}, but a number 0..{high} is needed.")
    return float(value)


def check_features(features: Any, semantic_map: np.ndarray) -> list[dict[str, Any]]:
    """Check what is asked of the nodules of a map.

    Args:
        features: None (no guidance), a dict for all nodules, or a list with a dict for each. A value may be None.
        semantic_map: labels 0..7, (H, W).

    Returns:
        A dict for each nodule, without the values that are None.

    Raises:
        ValueError: for anything else.
    """
    count = len(find_nodules(semantic_map))
    if features is None or isinstance(features, dict):
        features = [features or {}] * count
    if not isinstance(features, list) or not all(isinstance(requested, dict) for requested in features):
        raise ValueError("The features are no dict, nor a list with a dict for each nodule.")
    if len(features) != count:
        raise ValueError(f"Features of {len(features)} nodules are given, but the map has {count}.")
    checked = []
    for requested in features:
        chosen = {feature: value for feature, value in requested.items() if value is not None}
        for feature, value in chosen.items():
            feature_target(feature, value)
        checked.append(chosen)
    return checked


def resized_map(semantic_map: np.ndarray, size: int) -> np.ndarray:
    """Scale a map so that its longer edge has `size` pixels.

    Raises:
        ValueError: if a nodule vanishes, or two of them grow together.
    """
    scale = size / max(semantic_map.shape)
    height, width = (round(edge * scale) for edge in semantic_map.shape)
    image = PIL.Image.fromarray(semantic_map).resize((width, height), PIL.Image.Resampling.NEAREST)
    resized = np.asarray(image)
    if len(find_nodules(resized)) != len(find_nodules(semantic_map)):
        raise ValueError(
            f"`size` is {size}, at which a nodule of the map vanishes; take a larger size or a larger nodule."
        )
    return resized


def make_jobs(
    semantic_map: np.ndarray,
    pixel_spacing: float,
    features: Any,
    guidance_scale: Any = DEFAULT_SCALE,
    sampler: Any = DEFAULT_SAMPLER,
    num_inference_steps: Any = DEFAULT_STEPS,
    seed: Any = DEFAULT_SEED,
    num_images: Any = DEFAULT_IMAGES,
    size: Any = None,
    malignancy_scale: Any = None,
    malignancy_method: Any = DEFAULT_MALIGNANCY_METHOD,
    grain: Any = DEFAULT_GRAIN,
    *,
    multiple: int,
) -> list[Job]:
    """Make the jobs for slices of one map, with the seeds `seed`, `seed` + 1 and so on.

    Args:
        semantic_map: labels 0..7, (H, W).
        pixel_spacing: edge of its pixels in mm.
        features: None, a dict for all nodules, or a list with a dict for each.
        guidance_scale: of lobulation, spiculation and texture, 0..64; 0 is no guidance.
        sampler: one of `SAMPLERS`.
        num_inference_steps: 1..200.
        seed: 0..2^32.
        num_images: 1..8.
        size: pixels of the longer edge to which the map is scaled, 32..1024; None leaves the map as it is.
        malignancy_scale: of malignancy, 0..64; None takes what its method recommends.
        malignancy_method: one of `MALIGNANCY_METHODS`.
        grain: CT noise added to the slices, 0..4.
        multiple: height and width must be multiples of it, because autoencoder and U-Net halve them so often.

    Raises:
        ValueError: for a value outside these.
    """
    features = check_features(features, semantic_map)
    if size is not None:
        size = whole_number("size", size, MIN_SIZE, MAX_SIZE)
        pixel_spacing *= max(semantic_map.shape) / size
        semantic_map = resized_map(semantic_map, size)
    height, width = semantic_map.shape
    if height % multiple or width % multiple:
        raise ValueError(f"The map is {height}x{width} pixels, but height and width must be multiples of {multiple}.")
    if malignancy_method not in MALIGNANCY_METHODS:
        known = ", ".join(MALIGNANCY_METHODS)
        raise ValueError(f"`malignancy_method` is {malignancy_method!r}, but {known} are known.")
    if malignancy_scale is None:
        malignancy_scale = RECOMMENDED_SCALES[malignancy_method]
    guidance_scale = number("guidance_scale", guidance_scale, MAX_SCALE)
    malignancy_scale = number("malignancy_scale", malignancy_scale, MAX_SCALE)
    grain = number("grain", grain, MAX_GRAIN)
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler` is {sampler!r}, but {', '.join(SAMPLERS)} are known.")
    steps = whole_number("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
    first_seed = whole_number("seed", seed, 0, MAX_SEED)
    images = whole_number("num_images", num_images, 1, MAX_IMAGES)
    return [
        Job(
            semantic_map,
            pixel_spacing,
            features,
            guidance_scale,
            sampler,
            steps,
            seed,
            f"seed {seed}",
            malignancy_scale,
            malignancy_method,
            grain,
        )
        for seed in range(first_seed, first_seed + images)
    ]


def with_malignancy(jobs: Sequence[Job], malignancy: str) -> list[Job]:
    """The same jobs, maps and seeds, with every nodule guided to be "benign" or "malignant"."""
    return [
        replace(
            job,
            features=[{**features, "malignancy": malignancy} for features in job.features],
            title=f"{malignancy}, {job.title}",
        )
        for job in jobs
    ]
