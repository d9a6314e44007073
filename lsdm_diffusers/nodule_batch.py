"""The nodules that a call of a pipeline guides: which features each is asked for, and where it lies in the latents."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .guidance import nodule_mask
from .nodule_crop import crop_box
from .nodule_features import NODULE_FEATURES, feature_target
from .semantic_map import Nodule, find_nodules

Features = Mapping[str, str | float]
NoduleFeatures = Features | Sequence[Features | Sequence[Features | None] | None]


@dataclass(frozen=True)
class NoduleRequest:
    """What one nodule is asked for.

    Args:
        map_index: index of its map in the batch of maps.
        nodule: where it lies.
        features: {feature: value}, as `nodule_features` of a pipeline has them; not empty.
    """

    map_index: int
    nodule: Nodule
    features: Features


@dataclass
class NoduleBatch:
    """The guided nodules of a call, one entry each, with all that no step of sampling changes about them.

    Args:
        images: index of each nodule's image in the batch of latents.
        boxes: window of each nodule's crop in the latents, (y0, x0, y1, x1), half-open, all of one size.
        masks: (N, 1, edge, edge), boolean: where in its crop each nodule is guided.
        rows: {feature: (M,) indices of the nodules that are guided in it}; only features that a nodule is asked for.
        targets: {feature: (M,) what its classifier is asked for}.
    """

    images: list[int]
    boxes: list[tuple[int, int, int, int]]
    masks: torch.Tensor
    rows: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]

    def crops(self, latents: torch.Tensor) -> torch.Tensor:
        """Cut the nodules' crops (N, c, edge, edge) out of latents (B, c, h, w)."""
        windows = zip(self.images, self.boxes, strict=True)
        return torch.stack([latents[image, :, y0:y1, x0:x1] for image, (y0, x0, y1, x1) in windows])

    def paste(self, crops: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Add crops (N, c, edge, edge) to zeros of `shape` (B, c, h, w), each where `crops` cuts it out."""
        latents = torch.zeros(tuple(shape), dtype=crops.dtype, device=crops.device)
        for image, (y0, x0, y1, x1), crop in zip(self.images, self.boxes, crops, strict=True):
            latents[image, :, y0:y1, x0:x1] += crop
        return latents


def _check_features(features: object, index: int) -> None:
    if not isinstance(features, Mapping):
        raise ValueError(
            f"`nodule_features[{index}]` contains a {type(features).__name__}, but a dict for each nodule is needed."
        )
    for feature, value in features.items():
        feature_target(feature, value)


def features_by_nodule(nodule_features: NoduleFeatures, nodule_counts: Sequence[int]) -> list[list[Features]]:
    """The features that each nodule of each map is asked for; empty where a nodule is not guided.

    Args:
        nodule_features: a dict for every nodule of every map, or a list with one entry per map, each a dict or a list
            of dicts, one per nodule.
        nodule_counts: number of nodules of each map.

    Raises:
        ValueError: for lists of another length, other types, and features or values that cannot be asked for.
    """
    if isinstance(nodule_features, Mapping):
        _check_features(nodule_features, 0)
        return [[nodule_features] * count for count in nodule_counts]
    if not isinstance(nodule_features, (list, tuple)):
        raise ValueError(
            f"`nodule_features` is a {type(nodule_features).__name__}, but None, a dict or a list with one entry per "
            "map is needed."
        )
    if len(nodule_features) != len(nodule_counts):
        maps = "one entry, for the one map," if len(nodule_counts) == 1 else f"{len(nodule_counts)}, one for each map,"
        raise ValueError(
            f"`nodule_features` has {len(nodule_features)} entries, but {maps} is needed; a list for the nodules of "
            "one map is an entry itself: [[{...}, {...}]]."
        )
    features_by_map = []
    for index, (entry, count) in enumerate(zip(nodule_features, nodule_counts, strict=True)):
        entries = [entry] * count if entry is None or isinstance(entry, Mapping) else list(entry)
        if len(entries) != count:
            raise ValueError(
                f"`nodule_features[{index}]` has {len(entries)} entries, but the map has {count} nodules."
            )
        features_by_map.append([features or {} for features in entries])
        for features in features_by_map[-1]:
            _check_features(features, index)
    return features_by_map


def _nodule_box(mask: torch.Tensor, centred: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The crop of a nodule: centred at its centroid, unless another window of that size holds more than twice as much.

    The centroid of a crescent or a ring lies outside the nodule, so that its crop may miss the nodule.

    Args:
        mask: where the nodule is guided, (h, w), boolean.
        centred: the crop at the centroid, (y0, x0, y1, x1), half-open.

    Returns:
        That crop, or the one that holds most of the mask; of several, the nearest to the centroid's.
    """
    y0, x0, y1, x1 = centred
    # double precision is exact for counts below 2**53
    held = F.avg_pool2d(mask[None, None].double(), y1 - y0, stride=1, divisor_override=1)[0, 0]
    if held.max() <= 2 * held[y0, x0]:
        return centred
    fullest = (held == held.max()).nonzero()
    distances = (fullest - torch.tensor([y0, x0])).square().sum(dim=1)
    top, left = fullest[distances.argmin()].tolist()
    return top, left, top + y1 - y0, left + x1 - x0


def warn_of_maps_without_nodules(features: NoduleFeatures, counts: Sequence[int], stacklevel: int) -> None:
    """Warn where `nodule_features` asks for something on maps that have no nodule.

    Args:
        features: `nodule_features`, which `features_by_nodule` has checked.
        counts: number of nodules of each map.
        stacklevel: that of `warnings.warn`, seen from the caller.
    """
    entries = [features] * len(counts) if isinstance(features, Mapping) else features
    empty = [index for index, (entry, count) in enumerate(zip(entries, counts, strict=True)) if entry and not count]
    if empty:
        which = "the map has" if len(counts) == 1 else f"maps {', '.join(map(str, empty))} (counted from 0) have"
        warnings.warn(
            f"`nodule_features` is given, but {which} no nodule (labels 5, 6 and 7), so nothing is guided there.",
            stacklevel=stacklevel + 1,
        )


def requested_nodules(maps: np.ndarray, nodule_features: NoduleFeatures) -> list[NoduleRequest]:
    """The nodules that are asked for something, map by map in the order of `find_nodules`.

    Args:
        maps: labels (B, H, W).
        nodule_features: as in `features_by_nodule`.

    Raises:
        ValueError: as `features_by_nodule`.
    """
    nodules_by_map = [find_nodules(one_map) for one_map in maps]
    counts = [len(nodules) for nodules in nodules_by_map]
    features_by_map = features_by_nodule(nodule_features, counts)
    warn_of_maps_without_nodules(nodule_features, counts, stacklevel=5)  # the line that calls the pipeline
    requests = []
    for map_index, (nodules, features_of_map) in enumerate(zip(nodules_by_map, features_by_map, strict=True)):
        pairs = zip(nodules, features_of_map, strict=True)
        requests += [NoduleRequest(map_index, nodule, features) for nodule, features in pairs if features]
    return requests


def narrow_requests(requests: Sequence[NoduleRequest], features: Collection[str]) -> list[NoduleRequest]:
    """The same requests for some features only; without the nodules that are asked for none of them."""
    narrowed = []
    for request in requests:
        kept = {feature: value for feature, value in request.features.items() if feature in features}
        if kept:
            narrowed.append(replace(request, features=kept))
    return narrowed


def batch_nodules(
    requests: Sequence[NoduleRequest],
    map_size: tuple[int, int],
    images_per_map: int,
    factor: int,
    device: torch.device,
) -> NoduleBatch:
    """The nodules of all images, with the crops that their classifiers see.

    Args:
        requests: one or more.
        map_size: H and W in pixels.
        images_per_map: images of each map, which follow one another in the batch of latents.
        factor: down-sampling f of the autoencoder.
        device: where the tensors are made.

    Raises:
        ValueError: for maps smaller than the classifiers' crop.
    """
    latent_size = (map_size[0] // factor, map_size[1] // factor)
    images: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    masks: list[torch.Tensor] = []
    asked: list[Features] = []
    for request in requests:
        mask = nodule_mask(torch.from_numpy(request.nodule.mask(map_size)), latent_size)
        y0, x0, y1, x1 = _nodule_box(mask, crop_box(request.nodule.centroid_yx, latent_size, factor))
        mask = mask[None, y0:y1, x0:x1]
        images += range(request.map_index * images_per_map, (request.map_index + 1) * images_per_map)
        boxes += [(y0, x0, y1, x1)] * images_per_map
        masks += [mask] * images_per_map
        asked += [request.features] * images_per_map
    rows, targets = {}, {}
    for feature in NODULE_FEATURES:
        asking = [row for row, features in enumerate(asked) if feature in features]
        if asking:
            rows[feature] = torch.tensor(asking, device=device)
            values = [feature_target(feature, asked[row][feature]) for row in asking]
            targets[feature] = torch.tensor(values, device=device)
    return NoduleBatch(images, boxes, torch.stack(masks).to(device), rows, targets)
