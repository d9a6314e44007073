"""Edits of a real CT slice: a nodule more, one less, or the same one with other features."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.ndimage import label

from .ct_limits import DEFAULT_PIXEL_SPACING
from .io.nodule_stamp import stamp_nodule
from .labels import SemanticLabel
from .nodule_features import INDETERMINATE_RATING, feature_rating
from .nodule_outline import OUTLINE_FEATURES, reshape_nodule
from .pipeline_lsdm_inpaint import LSDMInpaintPipeline, dilated_mask
from .sampling_defaults import OUTLINE
from .segmentation import semantic_map_from_hu
from .semantic_map import Nodule, read_semantic_map

VESSEL_HU = -600  # lung with its noise is darker; vessels of a pixel or two are brighter


class EditedSlice(NamedTuple):
    """An edited slice.

    Args:
        hu: (H, W), of the dtype of the given slice, in Hounsfield units; outside `mask` as it was, to the bit.
        semantic_map: labels 0..7, (H, W), uint8, with the edit.
        mask: where the slice changed, boolean (H, W).
    """

    hu: np.ndarray
    semantic_map: np.ndarray
    mask: np.ndarray


def insert_nodule(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    centre_yx: tuple[float, float],
    diameter_mm: float,
    nodule_features: Mapping[str, Any] | None = None,
    shape: Literal["smooth", "lobulated", "spiculated"] = "smooth",
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    semantic_map: Any = None,
    seed: int = 0,
    **call_arguments: Any,
) -> EditedSlice:
    """Insert a nodule into a slice.

    Args:
        pipe: the pipeline.
        hu: the slice, (H, W), in Hounsfield units.
        centre_yx: row and column of the nodule's centre, in pixels; in a lung.
        diameter_mm: 3..60 mm.
        nodule_features: what the nodule is to look like, {feature: value}.
        shape: of its outline, before `nodule_features` change it.
        pixel_spacing: edge of a pixel in mm.
        semantic_map: labels of the slice, (H, W); None makes them from it.
        seed: of the outline.
        **call_arguments: further arguments of `pipe`: `generator`, `num_inference_steps`, `guidance_scale` ...

    Raises:
        ValueError: for a bad argument, a place where the nodule has no room in the lung, or a nodule too small for an
            asked outline, before any work is done.
    """
    labels = _labels(hu, semantic_map, pixel_spacing)
    malignancy = (nodule_features or {}).get("malignancy", INDETERMINATE_RATING)
    painted = stamp_nodule(labels, centre_yx, diameter_mm, pixel_spacing, shape, malignancy, seed)
    nodule_mask = _nodule_at(painted, painted != labels)
    edit = _edit(pipe, hu, painted, nodule_mask, nodule_features, call_arguments)
    return edit._replace(hu=with_vessels(np.asarray(hu), edit.hu))


def change_nodule(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    nodule_mask: np.ndarray,
    nodule_features: Mapping[str, Any],
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    semantic_map: Any = None,
    **call_arguments: Any,
) -> EditedSlice:
    """Draw a nodule of a slice anew, with other features.

    Args:
        pipe: the pipeline.
        hu: the slice, (H, W), in Hounsfield units.
        nodule_mask: where the nodule is, boolean (H, W).
        nodule_features: what it is to look like, {feature: value}.
        pixel_spacing: edge of a pixel in mm.
        semantic_map: labels of the slice, (H, W), with or without the nodule; None makes them from it.
        **call_arguments: further arguments of `pipe`; `strength` below 1 keeps structure of the nodule as it is.

    Raises:
        ValueError: for a bad argument, before any work is done.
    """
    nodule_mask = _checked_mask(nodule_mask, hu)
    painted = _labels(hu, semantic_map, pixel_spacing).copy()
    rating = feature_rating("malignancy", nodule_features.get("malignancy", INDETERMINATE_RATING))
    painted[nodule_mask] = SemanticLabel.for_malignancy(rating)
    return _edit(pipe, hu, painted, nodule_mask, nodule_features, call_arguments)


def remove_nodule(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    nodule_mask: np.ndarray,
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    semantic_map: Any = None,
    **call_arguments: Any,
) -> EditedSlice:
    """Fill the place of a nodule with lung.

    Args:
        pipe: the pipeline.
        hu: the slice, (H, W), in Hounsfield units.
        nodule_mask: where the nodule is, boolean (H, W).
        pixel_spacing: edge of a pixel in mm.
        semantic_map: labels of the slice, (H, W), with or without the nodule; None makes them from it.
        **call_arguments: further arguments of `pipe`.

    Raises:
        ValueError: for a bad argument, before any work is done.
    """
    nodule_mask = _checked_mask(nodule_mask, hu)
    painted = _labels(hu, semantic_map, pixel_spacing).copy()
    painted[nodule_mask] = SemanticLabel.LUNG
    return _edit(pipe, hu, painted, nodule_mask, None, call_arguments)


def _labels(hu: np.ndarray, semantic_map: Any, pixel_spacing: float) -> np.ndarray:
    if np.ndim(hu) != 2:
        raise ValueError(f"`hu` has shape {np.shape(hu)}, but one slice (H, W) is needed.")
    return semantic_map_from_hu(hu, pixel_spacing) if semantic_map is None else read_semantic_map(semantic_map)


def _checked_mask(nodule_mask: np.ndarray, hu: np.ndarray) -> np.ndarray:
    mask = np.asarray(nodule_mask)
    if mask.shape != np.shape(hu) or not np.isin(mask, (0, 1)).all() or not mask.any():
        raise ValueError(
            f"`nodule_mask` has shape {mask.shape}, but boolean values of the shape {np.shape(hu)} of `hu`, not all "
            "False, are needed."
        )
    return mask.astype(bool)


def _nodule_at(labels: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """The whole nodule of a map that some changed pixels belong to."""
    pieces, _ = label(labels >= SemanticLabel.NODULE_BENIGN, structure=np.ones((3, 3)))
    return np.isin(pieces, np.unique(pieces[changed & (pieces > 0)]))


def with_vessels(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """An edited image in which tissue that was brighter than what is drawn there stays: vessels, pleura.

    Else the margin around an inserted nodule would cut vessels off.

    Args:
        before: HU, of any shape.
        after: HU with a nodule inserted, of the same shape.
    """
    return np.where((before > VESSEL_HU) & (before > after), before, after)


def draw_outlines(
    pipe: LSDMInpaintPipeline,
    painted: np.ndarray,
    nodule_mask: np.ndarray,
    nodule_features: Mapping[str, Any] | None,
    call_arguments: Mapping[str, Any],
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw the outline that a nodule's features ask for into its map, which changes, so that the mask has room for it.

    Args:
        pipe: the pipeline, which says which features are outlines.
        painted: the map (H, W), with the nodule.
        nodule_mask: where it is, boolean (H, W).
        nodule_features: what it is asked for.
        call_arguments: of `pipe`; `guidance_method` is read.

    Returns:
        Where the nodule is now, and the features that are left to ask for.
    """
    features = dict(nodule_features or {})
    methods = pipe.recommended_methods(call_arguments.get("guidance_method"))
    wishes = {name: features.pop(name) for name in OUTLINE_FEATURES if name in features and methods[name] == OUTLINE}
    if not wishes:
        return nodule_mask, features
    ratings = {name: feature_rating(name, value) for name, value in wishes.items()}
    nodule = Nodule.from_mask(nodule_mask, SemanticLabel(int(painted[nodule_mask].max())))
    changed, nodule = reshape_nodule(painted, nodule, ratings.get("lobulation"), ratings.get("spiculation"))
    painted[:] = changed
    return nodule.mask((painted.shape[0], painted.shape[1])), features


def _edit(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    painted: np.ndarray,
    nodule_mask: np.ndarray,
    nodule_features: Mapping[str, Any] | None,
    call_arguments: Mapping[str, Any],
) -> EditedSlice:
    """Call the pipeline so that the nodule alone changes, whatever other nodules the map has."""
    options = dict(call_arguments)
    outline, features = draw_outlines(pipe, painted, nodule_mask, nodule_features, options)
    nodule_mask = nodule_mask | outline
    options.setdefault("guidance_scale", pipe.recommended_scales(options.get("guidance_method")) if features else 1.0)
    output: Any = pipe(hu, dilated_mask(nodule_mask), painted, features or None, output_type="hu", **options)
    return EditedSlice(output.images[0], output.semantic_maps[0], output.masks[0])
