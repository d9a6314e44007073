"""Contrast of ratings: classifier-free guidance by a U-Net that sees the ratings of nodules."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..labels import SemanticLabel
from ..nodule_batch import NoduleRequest, narrow_requests
from ..nodule_features import NODULE_FEATURES
from ..nodule_ratings import rating_maps
from .contrast import paint_asked
from .map_variants import MapVariant, MapVariants
from .step import GuidedStep

# Lobulation and spiculation correlate by 0.56, so that they guide together.
GROUPS = {"malignancy": ("malignancy",), "texture": ("texture",), "outline": ("lobulation", "spiculation")}
# Where each group guides: σ / α of the step, from and up to.
NOISE_INTERVALS = dict.fromkeys(GROUPS, (0.0, float("inf")))


def paint_unknown(maps: np.ndarray, requests: Sequence[NoduleRequest]) -> np.ndarray:
    """The maps (B, H, W) as the U-Net knows them where no malignancy is given: such nodules have label 6. A copy."""
    painted = maps.copy()
    for request in narrow_requests(requests, ["malignancy"]):
        mask = request.nodule.mask(maps.shape[1:])
        painted[request.map_index][mask] = SemanticLabel.NODULE_INDETERMINATE
    return painted


def asked_groups(requests: Sequence[NoduleRequest]) -> dict[str, list[str]]:
    """The groups that nodules are asked for, each with the features of it that are asked for."""
    asked = {feature for request in requests for feature in request.features}
    groups = {group: [feature for feature in features if feature in asked] for group, features in GROUPS.items()}
    return {group: features for group, features in groups.items() if features}


def rating_variants(
    maps: np.ndarray, requests: Sequence[NoduleRequest], device: torch.device
) -> dict[str, MapVariant]:
    """For each group that is asked for, the maps with its ratings.

    Args:
        maps: m_u, (B, H, W), from `paint_unknown`.
        requests: what the nodules are asked for.
        device: where the tensors are made.
    """
    variants = {}
    for group, features in asked_groups(requests).items():
        asked = narrow_requests(requests, features)
        ratings = np.zeros((len(maps), len(NODULE_FEATURES), *maps.shape[1:]), np.float32)
        for request in asked:
            ratings[request.map_index] += rating_maps([request.nodule], [request.features], maps.shape[1:])
        labels = paint_asked(maps, asked) if group == "malignancy" else maps
        variants[group] = MapVariant(torch.from_numpy(labels).to(device), torch.from_numpy(ratings).to(device), asked)
    return variants


class RatingGuidance:
    """v_u + Σ_g w_g·M·(v_g - v_u): v_u without ratings, v_g with those of one group, M the dilated nodule mask.

    w = 0 is the slice without ratings, and w = 1 what the U-Net itself draws for them.

    Args:
        groups: {group: the features of it that nodules are asked for}, in the order of `variants`.
        variants: the maps with the ratings of each group.
        noise_ratios: σ / α of each step, on the CPU.
        intervals: σ / α from which and up to which each group guides.
    """

    modules: Sequence[torch.nn.Module] = ()

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]],
        variants: MapVariants,
        noise_ratios: Sequence[float],
        intervals: Mapping[str, tuple[float, float]] = NOISE_INTERVALS,
    ):
        self.groups, self.variants = groups, variants
        self.noise_ratios, self.intervals = noise_ratios, intervals

    def weights(self, step: GuidedStep) -> list[float]:
        """w_g of each group in a step: the largest scale of its asked features, and 0 outside its noise interval."""
        ratio = self.noise_ratios[step.index]
        weights = []
        for group, features in self.groups.items():
            low, high = self.intervals[group]
            is_inside = low <= ratio <= high
            weights.append(max(step.scales[feature] for feature in features) if is_inside else 0.0)
        return weights

    def __call__(self, model_output: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """Move the output towards those with ratings."""
        weights = self.weights(step)
        if not any(weights):
            return model_output
        for weight, difference in zip(weights, self.variants.differences(step), strict=True):
            model_output = model_output + weight * difference
        return model_output
