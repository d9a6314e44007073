"""Noise and wishes that neighbouring slices of a volume share.

Slices that start from independent noise do not agree, even if their maps do. Noise that changes slowly along z lets a
deterministic sampler draw neighbours alike: ε_k = ρ·ε_(k-1) + √(1 - ρ²)·ξ, ρ = exp(-Δz / ℓ). Each slice alone still
has standard normal noise.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from .labels import SemanticLabel
from .semantic_map import find_nodules

CORRELATION_LENGTH_MM = 8.0  # ℓ: at 2.5 mm neighbours have a correlation of 0.73


def noise_correlation(slice_spacing_mm: float, correlation_length_mm: float = CORRELATION_LENGTH_MM) -> float:
    """ρ of neighbouring slices.

    Args:
        slice_spacing_mm: Δz, above 0.
        correlation_length_mm: ℓ, above 0.

    Raises:
        ValueError: for other values.

    >>> round(noise_correlation(2.5), 2)
    0.73
    """
    for name, value in (("slice_spacing_mm", slice_spacing_mm), ("correlation_length_mm", correlation_length_mm)):
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise ValueError(f"`{name}` is {value!r}, but a finite number of mm above 0 is needed.")
    return math.exp(-slice_spacing_mm / correlation_length_mm)


def volume_noise(
    count: int,
    shape: Sequence[int],
    correlation: float,
    generator: torch.Generator | None,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """The noise of each slice of a volume, one after the other; slice k does not depend on how many follow.

    Args:
        count: slices.
        shape: of a slice's latents, (1, c, h, w).
        correlation: ρ, 0..1.
        generator: the random generator.
        device: of the noise.

    Yields:
        (1, c, h, w), float32, standard normal.
    """
    noise = None
    for _ in range(count):
        fresh = randn_tensor(tuple(shape), generator=generator, device=device, dtype=torch.float32)
        noise = fresh if noise is None else correlation * noise + math.sqrt(1 - correlation**2) * fresh
        yield noise


def separate_generator(generator: torch.Generator | None) -> torch.Generator | None:
    """A generator for the grain of a volume, so that the noise of later slices does not depend on grain."""
    return None if generator is None else torch.Generator().manual_seed(generator.initial_seed() + 1)


def features_of_slices(maps: np.ndarray, nodule_features: Any) -> list[list[Mapping[str, Any]] | None]:
    """What the nodules of each slice are asked for, by what the nodules of the volume are.

    Args:
        maps: labels, (Z, H, W). Nodules of neighbouring slices that touch, also by a corner, are one.
        nodule_features: None, a dict for every nodule, or a list with one dict or None for each nodule of the volume,
            in the order in which their first pixels come, slice by slice and row by row.

    Returns:
        For each slice None, or a dict for each nodule in the order of `find_nodules`.

    Raises:
        ValueError: for another type, or a list of another length.
    """
    from scipy.ndimage import label

    if nodule_features is None:
        return [None] * len(maps)
    bodies, count = label(maps >= SemanticLabel.NODULE_BENIGN, structure=np.ones((3, 3, 3)))
    if isinstance(nodule_features, Mapping):
        wishes: list[Any] = [nodule_features] * count
    elif isinstance(nodule_features, (list, tuple)) and len(nodule_features) == count:
        wishes = list(nodule_features)
    else:
        raise ValueError(
            f"`nodule_features` is no dict, and no list with one dict for each of the {count} nodules of the volume."
        )
    by_slice: list[list[Mapping[str, Any]] | None] = []
    for labels, body in zip(maps, bodies, strict=True):
        masks = [nodule.mask(labels.shape) for nodule in find_nodules(labels)]
        by_slice.append([wishes[int(body[mask][0]) - 1] or {} for mask in masks] or None)
    return by_slice
