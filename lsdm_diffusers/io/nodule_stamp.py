"""Draw a nodule of a given size, shape and malignancy into a semantic map."""

from typing import Any, Literal

import cv2
import numpy as np
from scipy.ndimage import binary_fill_holes
from skimage.draw import line, polygon

from ..ct_limits import check_pixel_spacing
from ..labels import LABEL_NAMES, SemanticLabel
from ..nodule_features import malignancy_rating
from ..semantic_map import find_nodules, read_semantic_map

SHAPES = ("smooth", "lobulated", "spiculated")
DIAMETER_MM = (3.0, 60.0)  # micronodules are below it; above 30 mm a nodule is called a mass
MIN_SHARE_IN_LUNG = 0.5
# A closed outline as waves around a circle of radius 1: {number of waves: amplitude}.
SMOOTH_WAVES = {2: 0.08, 3: 0.03}
SPICULATED_CORE_WAVES = {2: 0.08, 3: 0.06, 5: 0.05, 7: 0.04}


class NoduleDoesNotFit(ValueError):
    """There is no room for the nodule at its place: the edge, the body, the lungs or another nodule are in the way."""


def _wavy_outline(angle: np.ndarray, amplitudes: dict[int, float], generator: np.random.Generator) -> np.ndarray:
    """Radius at each angle of a closed outline with waves of random phase."""
    phases = generator.uniform(0, 2 * np.pi, len(amplitudes))
    deviation = np.zeros_like(angle)
    for (waves, amplitude), phase in zip(amplitudes.items(), phases, strict=True):
        deviation += amplitude * np.cos(waves * angle + phase)
    return 1 + deviation


def _lobulated_outline(angle: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Radius at each angle of the outline of 4 to 6 overlapping discs around the centre."""
    count = int(generator.integers(4, 7))
    directions = (
        generator.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(count) + generator.uniform(-0.2, 0.2, count)) / count
    )
    offsets = generator.uniform(0.5, 0.75, count)
    disc_radii = generator.uniform(0.45, 0.6, count)
    disc_radii = np.maximum(disc_radii, 0.9 * offsets)
    radius = np.full(angle.shape, 0.6)
    for direction, offset, disc_radius in zip(directions, offsets, disc_radii, strict=True):
        along = offset * np.cos(angle - direction)
        across = offset * np.sin(angle - direction)
        edge = along + np.sqrt(np.maximum(disc_radius**2 - across**2, 0))
        radius = np.maximum(radius, np.where(np.abs(across) < disc_radius, edge, 0))
    return radius


def _spicules(core: np.ndarray, centre_yx: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mask of up to 12 tapering rays that leave the core.

    Each is a third to one of the core's radii long, and at least 2 pixels.
    """
    radius = np.sqrt(core.sum() / np.pi)
    count = min(int(generator.integers(8, 13)), int(2 * radius))  # the rays of a small nodule must not run together
    directions = (
        generator.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(count) + generator.uniform(-0.3, 0.3, count)) / count
    )
    rays = np.zeros_like(core)
    start = np.round(centre_yx).astype(int)
    for direction, length in zip(directions, radius * generator.uniform(0.35, 1.0, count), strict=True):
        outward = np.array([np.sin(direction), np.cos(direction)])
        sideward = 0.16 * radius * outward[::-1] * (1, -1)
        tip = centre_yx + outward * (radius + max(length, 2.0))
        base = centre_yx + outward * 0.8 * radius
        rays[line(*start, *np.round(tip).astype(int))] = True  # a thin triangle alone may have gaps
        rays[polygon(*np.array([base + sideward, tip, base - sideward]).T)] = True
    return rays


def _check_arguments(
    labels: np.ndarray, centre_yx: tuple[float, float], diameter_mm: float, pixel_spacing: float, shape: str
) -> None:
    if labels.ndim != 2:
        raise ValueError(f"`semantic_map` has shape {labels.shape}, but one map (H, W) is needed.")
    if shape not in SHAPES:
        raise ValueError(f"`shape` is {shape!r}, but {', '.join(map(repr, SHAPES))} are known.")
    low, high = DIAMETER_MM
    if not low <= diameter_mm <= high:
        raise ValueError(f"`diameter_mm` is {diameter_mm}, but nodules of {low:g} to {high:g} mm can be drawn.")
    check_pixel_spacing(pixel_spacing)
    if diameter_mm < pixel_spacing:
        raise ValueError(f"`diameter_mm` is {diameter_mm}, less than one pixel of {pixel_spacing} mm.")
    y, x = centre_yx
    height, width = labels.shape
    if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
        raise NoduleDoesNotFit(f"`centre_yx` is ({y:g}, {x:g}), outside the map of {height}x{width} pixels.")


def _check_place(
    labels: np.ndarray,
    core: tuple[np.ndarray, np.ndarray],
    nodule: tuple[np.ndarray, np.ndarray],
    centre_yx: tuple[float, float],
) -> None:
    """Refuse a nodule that would touch another, leave the body, or lie mostly outside the lungs.

    Args:
        labels: the map, (H, W).
        core: rows and columns of the pixels of the nodule without its spicules.
        nodule: rows and columns of all of its pixels.
        centre_yx: row and column of its centre.
    """
    y, x = centre_yx
    label_at_centre = LABEL_NAMES[labels[round(y), round(x)]]
    mask = np.zeros(labels.shape, np.uint8)
    mask[nodule] = 1
    touched = cv2.dilate(mask, np.ones((3, 3), np.uint8)).astype(bool)
    for number, neighbour in enumerate(find_nodules(labels), start=1):
        if touched[neighbour.mask(labels.shape)].any():
            neighbour_y, neighbour_x = neighbour.centroid_yx
            raise NoduleDoesNotFit(
                f"The nodule at ({y:g}, {x:g}) would touch nodule {number} of the map "
                f"({LABEL_NAMES[neighbour.label]}) at ({neighbour_y:.0f}, {neighbour_x:.0f})."
            )
    if not binary_fill_holes(labels != SemanticLabel.BACKGROUND)[nodule].all():
        raise NoduleDoesNotFit(f"The nodule at ({y:g}, {x:g}), on {label_at_centre}, would reach outside the body.")
    share_in_lung = (labels[core] == SemanticLabel.LUNG).mean()
    if share_in_lung < MIN_SHARE_IN_LUNG:
        raise NoduleDoesNotFit(
            f"{share_in_lung:.0%} of the nodule at ({y:g}, {x:g}), on {label_at_centre}, would lie in lung, "
            "but at least half of it must."
        )


def stamp_nodule(
    semantic_map: Any,
    centre_yx: tuple[float, float],
    diameter_mm: float,
    pixel_spacing: float,
    shape: Literal["smooth", "lobulated", "spiculated"] = "smooth",
    malignancy: float | Literal["benign", "malignant"] = 4,
    seed: int = 0,
) -> np.ndarray:
    """Draw a nodule into a copy of the map: connected, with the area of a disc of `diameter_mm`.

    The spicules of a spiculated nodule are added to that area: the diameter is that of its core. The nodule may reach
    into the chest wall or the mediastinum and replaces what is there, but at least half of the core lies in lung.

    Args:
        semantic_map: labels 0..7, (H, W), in any form that `read_semantic_map` takes.
        centre_yx: row and column of its centre, pixels from the top left.
        diameter_mm: 3..60 mm.
        pixel_spacing: edge of a pixel in mm, 0.1..5.
        shape: "smooth" (nearly round), "lobulated" (4 to 6 lobes) or "spiculated" (up to 12 rays).
        malignancy: rating 1..5, "benign" (as 2) or "malignant" (as 4), which gives the label 5, 6 or 7.
        seed: another seed gives another outline, where the pixels are fine enough to show it.

    Returns:
        `uint8` labels, (H, W).

    Raises:
        ValueError: for a value outside these ranges.
        NoduleDoesNotFit: a ValueError, where the nodule would leave the frame or the body, lie mostly outside the
            lungs, or touch another nodule, which is named.

    Example:
        >>> labels = np.full((64, 64), 4, dtype=np.uint8)
        >>> nodule = find_nodules(stamp_nodule(labels, (30, 30), diameter_mm=8, pixel_spacing=0.7))[0]
        >>> nodule.area, round(np.pi * (8 / 0.7 / 2) ** 2)
        (103, 103)
    """
    labels = read_semantic_map(semantic_map).copy()
    _check_arguments(labels, centre_yx, diameter_mm, pixel_spacing, shape)
    label = SemanticLabel.for_malignancy(malignancy_rating(malignancy))
    y, x = centre_yx
    height, width = labels.shape

    generator = np.random.default_rng(seed)
    # half the edge of a square that holds every outline; the square may leave the frame
    reach = int(np.ceil(1.25 * diameter_mm / pixel_spacing)) + 4
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1] + np.array([round(y), round(x)])[:, None, None]
    angle = np.arctan2(rows - y, columns - x)
    if shape == "lobulated":
        radius = _lobulated_outline(angle, generator)
    elif shape == "spiculated":
        radius = _wavy_outline(angle, SPICULATED_CORE_WAVES, generator)
    else:
        radius = _wavy_outline(angle, SMOOTH_WAVES, generator)
    # as many pixels as the disc has: those nearest to the centre, counted in radii of the outline
    area = max(1, round(np.pi * (diameter_mm / pixel_spacing / 2) ** 2))
    order = np.argsort((np.hypot(rows - y, columns - x) / radius).ravel(), kind="stable")
    core = np.zeros(rows.shape, dtype=bool)
    core.flat[order[:area]] = True
    nodule = core
    if shape == "spiculated":
        nodule = core | _spicules(core, np.array([y - rows[0, 0], x - columns[0, 0]]), generator)

    inside_frame = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if not inside_frame[nodule].all():
        raise NoduleDoesNotFit(
            f"`centre_yx` is ({y:g}, {x:g}), too near to the edge of the map for a nodule of {diameter_mm:g} mm."
        )
    nodule_pixels = rows[nodule], columns[nodule]
    _check_place(labels, (rows[core], columns[core]), nodule_pixels, centre_yx)
    labels[nodule_pixels] = label
    return labels
