"""Edits of a series of CT slices: a nodule in 3D more, one less, or the same one with other features.

A nodule is drawn in all slices that it touches, with noise that changes slowly along z, so that they agree.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.ndimage import affine_transform, center_of_mass, distance_transform_edt, find_objects, label

from .ct_limits import DEFAULT_PIXEL_SPACING
from .io.nodule_stamp import DIAMETER_MM, MIN_SHARE_IN_LUNG, NoduleDoesNotFit, stamp_nodule
from .labels import SemanticLabel
from .nodule_features import INDETERMINATE_RATING, feature_rating
from .pipeline_lsdm_inpaint import LSDMInpaintPipeline, dilated_mask
from .sampling_defaults import OUTLINE
from .segmentation import semantic_map_from_hu
from .slice_edits import draw_outlines, with_vessels


class EditedSeries(NamedTuple):
    """An edited part of a series.

    Args:
        hu: (Z, H, W), of the dtype of the given series; outside `mask` as it was, to the bit.
        mask: where it changed, boolean (Z, H, W).
        nodule: where the nodule is, or was if it was removed, boolean (Z, H, W).
    """

    hu: np.ndarray
    mask: np.ndarray
    nodule: np.ndarray


class FoundNodule(NamedTuple):
    """A nodule of a mask."""

    number: int
    centre: tuple[float, float, float]  # slice, row and column
    diameter_mm: float  # of a sphere of its volume
    slices: tuple[int, int]  # the first and the last


def find_nodules_3d(nodules: np.ndarray, pixel_spacing_mm: float, slice_spacing_mm: float) -> list[FoundNodule]:
    """The nodules of a mask.

    Args:
        nodules: their numbers, 0 elsewhere, (Z, H, W).
        pixel_spacing_mm: edge of a pixel.
        slice_spacing_mm: distance of neighbouring slices.
    """
    found = []
    for number, box in enumerate(find_objects(nodules), start=1):
        if box is None:
            continue
        mask = nodules[box] == number
        centre = [start.start + offset for start, offset in zip(box, center_of_mass(mask), strict=True)]
        volume = mask.sum() * pixel_spacing_mm**2 * slice_spacing_mm
        diameter = float((6 * volume / math.pi) ** (1 / 3))
        found.append(FoundNodule(number, (centre[0], centre[1], centre[2]), diameter, (box[0].start, box[0].stop - 1)))
    return found


def numbered_nodules(mask: np.ndarray) -> np.ndarray:
    """The nodules of a mask with numbers: those it has, or, of 0 and 1 alone, those of its pieces, (Z, H, W), int32.

    Raises:
        ValueError: for values that are no whole numbers of at least 0.
    """
    values = np.asarray(mask)
    if values.ndim != 3 or not np.isfinite(values).all() or (values < 0).any() or (values != np.rint(values)).any():
        raise ValueError(f"the mask of shape {values.shape} has values other than whole numbers of at least 0 in 3D.")
    numbers = values.astype(np.int32)
    return label(numbers, structure=np.ones((3, 3, 3)))[0].astype(np.int32) if numbers.max() == 1 else numbers


def sphere_of_outline(outline: np.ndarray, offsets_mm: Sequence[float], diameter_mm: float) -> np.ndarray:
    """A nodule in 3D of which an outline is the middle; beside it the outline is smaller, as in a sphere.

    Args:
        outline: mask of the middle slice, boolean (H, W), not empty.
        offsets_mm: of the slices from the middle.
        diameter_mm: of the nodule along z.

    Returns:
        Boolean (Z, H, W); slices beyond the nodule are empty.
    """
    rows, columns = np.nonzero(outline)
    centre = np.array([rows.mean(), columns.mean()])
    signed = distance_transform_edt(outline) - distance_transform_edt(~outline)
    masks = np.zeros((len(offsets_mm), *outline.shape), dtype=bool)
    for mask, offset in zip(masks, offsets_mm, strict=True):
        share = max(0.0, 1 - (2 * offset / diameter_mm) ** 2)  # of the area
        pixels = round(outline.sum() * share)
        if pixels == 0:
            continue
        scale = 1 / math.sqrt(share)
        smaller = affine_transform(signed, [scale, scale], centre - scale * centre, order=1, mode="nearest")
        mask.flat[np.argsort(-smaller, axis=None, kind="stable")[:pixels]] = True
    return masks


class PlannedNodule(NamedTuple):
    """A nodule that has room in a series.

    Args:
        first: the first slice that it touches.
        mask: boolean (z, H, W), of that slice and the following ones.
        maps: labels of these slices, the nodule painted in, (z, H, W).
        features: what it is asked for besides its outline.
    """

    first: int
    mask: np.ndarray
    maps: np.ndarray
    features: dict[str, Any]


def plan_nodule(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    centre: tuple[float, float, float],
    diameter_mm: float,
    slice_spacing_mm: float,
    nodule_features: Mapping[str, Any] | None = None,
    shape: Literal["smooth", "lobulated", "spiculated"] = "smooth",
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    other_nodules: np.ndarray | None = None,
    seed: int = 0,
    guidance_method: Any = None,
) -> PlannedNodule:
    """Find out whether a nodule has room in a series, and where it would lie. Arguments as of `insert_nodule_3d`.

    Raises:
        ValueError: as `insert_nodule_3d`.
    """
    _check_series(hu, slice_spacing_mm)
    middle = round(centre[0])
    if not 0 <= middle < len(hu):
        raise NoduleDoesNotFit(f"`centre` is slice {centre[0]:g}, but the series has 0..{len(hu) - 1}.")
    low, high = DIAMETER_MM
    if not low <= diameter_mm <= high:
        raise ValueError(f"`diameter_mm` is {diameter_mm}, but nodules of {low:g} to {high:g} mm can be drawn.")
    malignancy = (nodule_features or {}).get("malignancy", INDETERMINATE_RATING)
    labels = semantic_map_from_hu(hu[middle], pixel_spacing)
    painted = stamp_nodule(labels, (centre[1], centre[2]), diameter_mm, pixel_spacing, shape, malignancy, seed)
    given = {"guidance_method": guidance_method}
    outline, features = draw_outlines(pipe, painted, painted != labels, nodule_features, given)

    reach = diameter_mm / 2 / slice_spacing_mm
    first = max(0, min(math.ceil(centre[0] - reach), middle))
    last = min(len(hu) - 1, max(math.floor(centre[0] + reach), middle))
    offsets = [(index - centre[0]) * slice_spacing_mm for index in range(first, last + 1)]
    mask = sphere_of_outline(outline, offsets, diameter_mm)
    if not mask[middle - first].any():  # thick slices: the nodule lies between two
        mask[middle - first] = outline
    part = slice(first, last + 1)
    known = {middle: labels}
    indices = range(first, last + 1)
    maps = np.stack([known[k] if k in known else semantic_map_from_hu(hu[k], pixel_spacing) for k in indices])
    _check_room(maps, mask, None if other_nodules is None else other_nodules[part], first)
    maps[mask] = SemanticLabel.for_malignancy(feature_rating("malignancy", malignancy))
    return PlannedNodule(first, mask, maps, features)


def insert_nodule_3d(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    centre: tuple[float, float, float],
    diameter_mm: float,
    slice_spacing_mm: float,
    nodule_features: Mapping[str, Any] | None = None,
    shape: Literal["smooth", "lobulated", "spiculated"] = "smooth",
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    other_nodules: np.ndarray | None = None,
    seed: int = 0,
    **call_arguments: Any,
) -> EditedSeries:
    """Insert a nodule into a series.

    Args:
        pipe: the pipeline.
        hu: the series, (Z, H, W), in Hounsfield units.
        centre: slice, row and column of the nodule's centre, which may be fractions; in a lung.
        diameter_mm: 3..60 mm.
        slice_spacing_mm: distance of neighbouring slices.
        nodule_features: what the nodule is to look like, {feature: value}.
        shape: of its outline, before `nodule_features` change it.
        pixel_spacing: edge of a pixel in mm.
        other_nodules: where the series has nodules, boolean (Z, H, W), which the new one may not touch.
        seed: of the outline and of the noise.
        **call_arguments: further arguments of `pipe`: `num_inference_steps`, `guidance_scale` ...

    Raises:
        ValueError: for a bad argument, a place where the nodule has no room in the lung, or a nodule too small for an
            asked outline, before any work is done.
    """
    plan = plan_nodule(
        pipe,
        hu,
        centre,
        diameter_mm,
        slice_spacing_mm,
        nodule_features,
        shape,
        pixel_spacing,
        other_nodules,
        seed,
        call_arguments.get("guidance_method"),
    )
    edit = _edit_part(
        pipe, hu, plan.first, plan.mask, plan.maps, plan.features, slice_spacing_mm, seed, call_arguments
    )
    return edit._replace(hu=with_vessels(hu, edit.hu))


def change_nodule_3d(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    nodule: np.ndarray,
    nodule_features: Mapping[str, Any],
    slice_spacing_mm: float,
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    seed: int = 0,
    **call_arguments: Any,
) -> EditedSeries:
    """Draw a nodule of a series anew, with other features and its own outline.

    Args:
        pipe: the pipeline.
        hu: the series, (Z, H, W), in Hounsfield units.
        nodule: where the nodule is, boolean (Z, H, W).
        nodule_features: what it is to look like: malignancy and texture.
        slice_spacing_mm: distance of neighbouring slices.
        pixel_spacing: edge of a pixel in mm.
        seed: of the noise.
        **call_arguments: further arguments of `pipe`; `strength` below 1 keeps structure of the nodule as it is.

    Raises:
        ValueError: for a bad argument, before any work is done.
    """
    _check_series(hu, slice_spacing_mm)
    methods = pipe.recommended_methods(call_arguments.get("guidance_method"))
    outlined = [name for name in nodule_features if methods.get(name) == OUTLINE]
    if outlined:
        raise ValueError(
            f"`nodule_features` asks for {outlined[0]}, which is an outline: remove the nodule and insert another."
        )
    rating = feature_rating("malignancy", nodule_features.get("malignancy", INDETERMINATE_RATING))
    painted = SemanticLabel.for_malignancy(rating)
    return _repaint(pipe, hu, nodule, painted, nodule_features, slice_spacing_mm, pixel_spacing, seed, call_arguments)


def remove_nodule_3d(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    nodule: np.ndarray,
    slice_spacing_mm: float,
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    seed: int = 0,
    **call_arguments: Any,
) -> EditedSeries:
    """Fill the place of a nodule of a series with lung.

    Args:
        pipe: the pipeline.
        hu: the series, (Z, H, W), in Hounsfield units.
        nodule: where the nodule is, boolean (Z, H, W).
        slice_spacing_mm: distance of neighbouring slices.
        pixel_spacing: edge of a pixel in mm.
        seed: of the noise.
        **call_arguments: further arguments of `pipe`.

    Raises:
        ValueError: for a bad argument, before any work is done.
    """
    _check_series(hu, slice_spacing_mm)
    lung = SemanticLabel.LUNG
    return _repaint(pipe, hu, nodule, lung, None, slice_spacing_mm, pixel_spacing, seed, call_arguments)


def _check_series(hu: np.ndarray, slice_spacing_mm: float) -> None:
    if np.ndim(hu) != 3:
        raise ValueError(f"`hu` has shape {np.shape(hu)}, but a series (Z, H, W) is needed.")
    if not (isinstance(slice_spacing_mm, (int, float)) and math.isfinite(slice_spacing_mm) and slice_spacing_mm > 0):
        raise ValueError(f"`slice_spacing_mm` is {slice_spacing_mm!r}, but a finite number of mm above 0 is needed.")


def _check_room(maps: np.ndarray, nodule: np.ndarray, others: np.ndarray | None, first: int) -> None:
    """Raise NoduleDoesNotFit where the nodule touches another, leaves the body, or lies mostly outside the lungs."""
    for number, (labels, mask) in enumerate(zip(maps, nodule, strict=True), start=first):
        if (labels[mask] == SemanticLabel.BACKGROUND).any():
            raise NoduleDoesNotFit(f"The nodule would reach outside the body in slice {number}.")
    if others is not None and (others & np.stack([dilated_mask(mask) for mask in nodule])).any():
        raise NoduleDoesNotFit("The nodule would touch another one of the mask.")
    share = float((maps[nodule] == SemanticLabel.LUNG).mean())
    if share < MIN_SHARE_IN_LUNG:
        raise NoduleDoesNotFit(f"{share:.0%} of the nodule would lie in lung, but at least half of it must.")


def _repaint(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    nodule: np.ndarray,
    painted: SemanticLabel,
    features: Mapping[str, Any] | None,
    slice_spacing_mm: float,
    pixel_spacing: float,
    seed: int,
    call_arguments: Mapping[str, Any],
) -> EditedSeries:
    mask = np.asarray(nodule)
    if mask.shape != np.shape(hu) or not np.isin(mask, (0, 1)).all() or not mask.any():
        raise ValueError(
            f"`nodule` has shape {mask.shape}, but boolean values of the shape {np.shape(hu)} of `hu`, not all False, "
            "are needed."
        )
    touched = np.flatnonzero(mask.any((1, 2)))
    first, last = int(touched[0]), int(touched[-1])
    mask = mask[first : last + 1].astype(bool)
    maps = np.stack([semantic_map_from_hu(one, pixel_spacing) for one in hu[first : last + 1]])
    maps[mask] = painted
    return _edit_part(pipe, hu, first, mask, maps, features, slice_spacing_mm, seed, call_arguments)


def _edit_part(
    pipe: LSDMInpaintPipeline,
    hu: np.ndarray,
    first: int,
    nodule: np.ndarray,
    maps: np.ndarray,
    features: Mapping[str, Any] | None,
    slice_spacing_mm: float,
    seed: int,
    call_arguments: Mapping[str, Any],
) -> EditedSeries:
    """Draw the slices of a nodule anew.

    Args:
        pipe: the pipeline.
        hu: the series, (Z, H, W).
        first: slice of `hu` where `nodule` begins.
        nodule: boolean (z, H, W).
        maps: of these slices, the edit painted in.
        features: what the nodule is asked for.
        slice_spacing_mm: distance of neighbouring slices.
        seed: of the noise.
        call_arguments: of `pipe`.
    """
    part = slice(first, first + len(nodule))
    options = dict(call_arguments)
    scales = pipe.recommended_scales(options.get("guidance_method")) if features else 1.0
    options.setdefault("guidance_scale", scales)
    output: Any = pipe(
        hu[part],
        np.stack([dilated_mask(mask) if mask.any() else mask for mask in nodule]),
        maps,
        dict(features) if features else None,
        output_type="hu",
        volume=True,
        slice_spacing_mm=slice_spacing_mm,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    edited, mask, drawn = hu.copy(), np.zeros(hu.shape, dtype=bool), np.zeros(hu.shape, dtype=bool)
    edited[part], mask[part], drawn[part] = output.images, output.masks, nodule
    return EditedSeries(edited, mask, drawn)
