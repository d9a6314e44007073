"""Maps of the ratings of nodules, which a U-Net with rating channels sees beside the semantic map."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .nodule_features import NODULE_FEATURES, feature_rating
from .semantic_map import Nodule


def rating_maps(
    nodules: Sequence[Nodule], features: Sequence[Mapping[str, str | float]], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Each nodule's pixels with its ratings, one map a feature.

    Args:
        nodules: of one map, as `find_nodules` gives them.
        features: for each nodule, the ratings that are given: 1..5, for malignancy also "benign" or "malignant".
        shape: of the map, (H, W).

    Returns:
        (4, H, W) in the order of `NODULE_FEATURES`: 1..5 where a rating is given, 0 elsewhere.

    Raises:
        ValueError: for another number of nodules than of features, or what `feature_rating` refuses.

    >>> from lsdm_diffusers.semantic_map import find_nodules
    >>> labels = np.full((8, 8), 4, dtype=np.uint8)
    >>> labels[2:4, 2:4] = 7
    >>> rating_maps(find_nodules(labels), [{"malignancy": "malignant"}], (8, 8)).max(axis=(1, 2)).tolist()
    [4.0, 0.0, 0.0, 0.0]
    """
    if len(features) != len(nodules):
        raise ValueError(f"`features` has {len(features)} entries, but there are {len(nodules)} nodules.")
    maps = np.zeros((len(NODULE_FEATURES), *shape), np.float32)
    for nodule, given in zip(nodules, features, strict=True):
        mask = nodule.mask(shape)
        for feature, value in given.items():
            rating = feature_rating(feature, value)  # refuses an unknown feature
            maps[NODULE_FEATURES.index(feature), mask] = rating
    return maps
