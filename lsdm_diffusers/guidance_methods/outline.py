"""Lobulation and spiculation by the outline that the map gives a nodule."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..nodule_batch import NoduleRequest, narrow_requests
from ..nodule_features import feature_rating
from ..nodule_outline import reshape_nodule


def draw_outlines(
    maps: np.ndarray, requests: Sequence[NoduleRequest], features: Sequence[str]
) -> tuple[np.ndarray, list[NoduleRequest]]:
    """Give the nodules of maps the outlines that they are asked for.

    Args:
        maps: (B, H, W).
        requests: what each nodule is asked for.
        features: lobulation, spiculation or both.

    Returns:
        The maps, a copy where something is drawn, and all requests with the nodules as they lie there.

    Warns:
        UserWarning: for a nodule whose outline cannot be changed, which stays as it is.
    """
    drawn, changed = maps.copy(), list(requests)
    for index, request in enumerate(requests):
        for narrowed in narrow_requests([request], features):
            ratings = {feature: feature_rating(feature, narrowed.features[feature]) for feature in narrowed.features}
            try:
                labels, nodule = reshape_nodule(drawn[request.map_index], request.nodule, **ratings, seed=index)
            except ValueError as error:
                warnings.warn(f"`nodule_features` asks for {', '.join(ratings)}, but {error}", stacklevel=5)
                continue
            drawn[request.map_index] = labels
            changed[index] = replace(request, nodule=nodule)
    return drawn, changed
