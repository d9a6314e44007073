"""Which method guides which feature: reading of `guidance_method`, and the features that each method can guide."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..nodule_batch import NoduleRequest
from ..nodule_features import NODULE_FEATURES
from ..nodule_outline import OUTLINE_FEATURES
from ..sampling_defaults import CLASSIFIER, CLASSIFIER_FREE, CONTRAST, OUTLINE

METHODS = (CLASSIFIER, CONTRAST, CLASSIFIER_FREE, OUTLINE)


def cannot_guide(method: str, feature: str) -> str | None:
    """Why a method cannot guide a feature, or None."""
    if method == CONTRAST and feature != "malignancy":
        return f'but labels differ by malignancy alone; use "{CLASSIFIER}" or "{CLASSIFIER_FREE}"'
    if method == OUTLINE and feature not in OUTLINE_FEATURES:
        return f"but an outline shows {' and '.join(OUTLINE_FEATURES)} alone; use another method"
    return None


def check_methods(methods: Any, argument: str) -> None:
    """Raise ValueError unless `methods` maps features to methods that can guide them.

    Args:
        methods: {feature: name}.
        argument: what the caller calls it, for the error.
    """
    if not isinstance(methods, Mapping):
        raise ValueError(
            f"`{argument}` is a {type(methods).__name__}, but None, a name or a dict of names by feature is needed."
        )
    for feature, method in methods.items():
        if feature not in NODULE_FEATURES:
            raise ValueError(
                f"`{argument}` has the key {feature!r}, but the features are {', '.join(NODULE_FEATURES)}."
            )
        if method not in METHODS:
            raise ValueError(f"`{argument}` has {feature} = {method!r}, but one of {', '.join(METHODS)} is needed.")
        reason = cannot_guide(method, feature)
        if reason is not None:
            raise ValueError(f'`{argument}` has {feature} = "{method}", {reason}.')


def choose_methods(
    guidance_method: str | Mapping[str, str] | None, recommended: Mapping[str, str] | None
) -> dict[str, str]:
    """The method of every feature.

    Args:
        guidance_method: a name for all features, names by feature, or None. Features that are not named keep the
            recommended one.
        recommended: the checkpoint's own choice by feature; "classifier" where it has none.

    Returns:
        {feature: name}. The name "contrast" or "outline" for all features holds for those that it can guide: asking
        for another one as well is refused by `check_requests`.

    Raises:
        ValueError: for an unknown name or feature, or a method that cannot guide the feature.

    >>> choose_methods({"texture": "classifier_free"}, {"malignancy": "contrast"})["malignancy"]
    'contrast'
    """
    chosen = {**dict.fromkeys(NODULE_FEATURES, CLASSIFIER), **(recommended or {})}
    if guidance_method is None:
        return chosen
    if isinstance(guidance_method, str):
        if guidance_method not in METHODS:
            raise ValueError(
                f"`guidance_method` is {guidance_method!r}, but one of {', '.join(METHODS)}, or a dict of them by "
                "feature, is needed."
            )
        return dict.fromkeys(NODULE_FEATURES, guidance_method)
    check_methods(guidance_method, "guidance_method")
    return chosen | dict(guidance_method)


def check_requests(
    requests: Sequence[NoduleRequest],
    methods: Mapping[str, str],
    classifiers: Mapping[str, object],
    rating_channels: int,
) -> None:
    """Raise ValueError where nodules are asked for what their feature's method cannot do.

    Args:
        requests: what each nodule is asked for.
        methods: {feature: name}, from `choose_methods`.
        classifiers: the pipeline's classifiers by feature.
        rating_channels: of the U-Net.
    """
    for request in requests:
        for feature in request.features:
            method = methods[feature]
            if method == CLASSIFIER and feature not in classifiers:
                raise ValueError(
                    f"`nodule_features` asks for {feature}, but the pipeline has no `{feature}_classifier`."
                )
            if method == CLASSIFIER_FREE and rating_channels != len(NODULE_FEATURES):
                raise ValueError(
                    f'`guidance_method` is "{CLASSIFIER_FREE}" for {feature}, but the U-Net has {rating_channels} '
                    f"rating channels, and {len(NODULE_FEATURES)} are needed."
                )
            reason = cannot_guide(method, feature)
            if reason is not None:
                raise ValueError(f'`guidance_method` is "{method}" for {feature}, {reason}.')
