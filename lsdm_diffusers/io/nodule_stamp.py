"""Draw a nodule of a given size, shape and malignancy into a semantic map."""

from typing import Literal

import cv2
import numpy as np
from scipy.ndimage import binary_fill_holes
from skimage.draw import line, polygon

from ..labels import LABEL_NAMES, SemanticLabel
from ..nodule_features import malignancy_rating
from ..semantic_map import find_nodules, read_semantic_map

SHAPES = ("smooth", "lobulated", "spiculated")
DIAMETER_MM = (3.0, 60.0)  # micronodules are below it; above 30 mm a nodule is called a mass


def _harmonics(angle: np.ndarray, amplitudes: dict[int, float], generator: np.random.Generator) -> np.ndarray:
    """A closed outline: radius 1 with waves of random phase, {waves around the outline: amplitude}."""
    phases = generator.uniform(0, 2 * np.pi, len(amplitudes))
    return 1 + sum(a * np.cos(k * angle + phase) for (k, a), phase in zip(amplitudes.items(), phases, strict=True))


def _lobes(angle: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The outline of 4 to 6 overlapping discs set around the centre."""
    count = int(generator.integers(4, 7))
    directions = (
        generator.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(count) + generator.uniform(-0.2, 0.2, count)) / count
    )
    offsets = generator.uniform(0.5, 0.75, count)
    radii = generator.uniform(0.45, 0.6, count)
    radii = np.maximum(radii, 0.9 * offsets)
    radius = np.full(angle.shape, 0.6)
    for direction, offset, disc in zip(directions, offsets, radii, strict=True):
        along = offset * np.cos(angle - direction)
        across = offset * np.sin(angle - direction)
        edge = along + np.sqrt(np.maximum(disc**2 - across**2, 0))
        radius = np.maximum(radius, np.where(np.abs(across) < disc, edge, 0))
    return radius


def _spicules(core: np.ndarray, centre_yx: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Up to 12 tapering rays that leave the core, a third to one of its radii long, at least two pixels."""
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


def stamp_nodule(
    semantic_map,
    centre_yx: tuple[float, float],
    diameter_mm: float,
    pixel_spacing: float,
    shape: Literal["smooth", "lobulated", "spiculated"] = "smooth",
    malignancy: float | Literal["benign", "malignant"] = 4,
    seed: int = 0,
) -> np.ndarray:
    """A copy of the map with a nodule drawn into it, connected, with the area of a disc of `diameter_mm`.

    The spicules of a spiculated nodule come on top of that area: the diameter is that of its core. The nodule may reach into the chest
    wall or the mediastinum and replaces what is there, but at least half of the core lies in lung.

    Args:
        semantic_map: labels 0..7, (H, W).
        centre_yx: row and column of its centre, pixels from the top left.
        diameter_mm: 3..60 mm.
        pixel_spacing: edge of a pixel in mm, 0.1..5.
        shape: "smooth" (nearly round), "lobulated" (4 to 6 lobes) or "spiculated" (up to 12 rays).
        malignancy: rating 1..5, "benign" (as 2) or "malignant" (as 4), which gives the label 5, 6 or 7.
        seed: another seed, another outline (where the pixels are fine enough to show it).

    Returns:
        `uint8` labels, (H, W).

    Raises:
        ValueError: for a value outside these ranges, and where the nodule would leave the frame or the body, lie mostly outside the lungs,
            or touch a nodule that is there, which is named.

    Example:
        >>> labels = np.full((64, 64), 4, dtype=np.uint8)
        >>> nodule = find_nodules(stamp_nodule(labels, (30, 30), diameter_mm=8, pixel_spacing=0.7))[0]
        >>> nodule.area, round(np.pi * (8 / 0.7 / 2) ** 2)
        (103, 103)
    """
    labels = read_semantic_map(semantic_map).copy()
    if labels.ndim != 2:
        raise ValueError(f"`semantic_map` has shape {labels.shape}, but one map (H, W) is needed.")
    if shape not in SHAPES:
        raise ValueError(f"`shape` is {shape!r}, but {', '.join(map(repr, SHAPES))} are known.")
    if not DIAMETER_MM[0] <= diameter_mm <= DIAMETER_MM[1]:
        raise ValueError(
            f"`diameter_mm` is {diameter_mm}, but nodules of {DIAMETER_MM[0]:g} to {DIAMETER_MM[1]:g} mm can be drawn."
        )
    if not 0.1 <= pixel_spacing <= 5:
        raise ValueError(f"`pixel_spacing` is {pixel_spacing}, but the edge of a pixel of chest CT is 0.1..5 mm.")
    if diameter_mm < pixel_spacing:
        raise ValueError(f"`diameter_mm` is {diameter_mm}, less than one pixel of {pixel_spacing} mm.")
    rating = malignancy_rating(malignancy)
    y, x = centre_yx
    height, width = labels.shape
    if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
        raise ValueError(f"`centre_yx` is ({y:g}, {x:g}), outside the map of {height}x{width} pixels.")

    generator = np.random.default_rng(seed)
    reach = (
        int(np.ceil(1.25 * diameter_mm / pixel_spacing)) + 4
    )  # a square that holds every outline; it may leave the frame
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1] + np.array([round(y), round(x)])[:, None, None]
    angle = np.arctan2(rows - y, columns - x)
    if shape == "lobulated":
        radius = _lobes(angle, generator)
    elif shape == "spiculated":
        radius = _harmonics(angle, {2: 0.08, 3: 0.06, 5: 0.05, 7: 0.04}, generator)
    else:
        radius = _harmonics(angle, {2: 0.08, 3: 0.03}, generator)
    # the pixels nearest to the centre, counted in radii of the outline, as many as the disc has
    area = max(1, round(np.pi * (diameter_mm / pixel_spacing / 2) ** 2))
    order = np.argsort((np.hypot(rows - y, columns - x) / radius).ravel(), kind="stable")
    core = np.zeros(rows.shape, dtype=bool)
    core.flat[order[:area]] = True
    nodule = (
        core | _spicules(core, np.array([y - rows[0, 0], x - columns[0, 0]]), generator)
        if shape == "spiculated"
        else core
    )

    if not ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width))[nodule].all():
        raise ValueError(
            f"`centre_yx` is ({y:g}, {x:g}), too near to the edge of the map for a nodule of {diameter_mm:g} mm."
        )
    core = rows[core], columns[core]
    nodule = rows[nodule], columns[nodule]
    here = LABEL_NAMES[labels[round(y), round(x)]]
    painted = np.zeros(labels.shape, np.uint8)
    painted[nodule] = 1
    around = cv2.dilate(painted, np.ones((3, 3), np.uint8)).astype(bool)
    for index, other in enumerate(find_nodules(labels), start=1):
        if around[other.mask(labels.shape)].any():
            where = f"({other.centroid_yx[0]:.0f}, {other.centroid_yx[1]:.0f})"
            raise ValueError(
                f"The nodule at ({y:g}, {x:g}) would touch nodule {index} of the map ({LABEL_NAMES[other.label]}) at {where}."
            )
    if not binary_fill_holes(labels != SemanticLabel.BACKGROUND)[nodule].all():
        raise ValueError(f"The nodule at ({y:g}, {x:g}), on {here}, would reach outside the body.")
    in_lung = (labels[core] == SemanticLabel.LUNG).mean()
    if in_lung < 0.5:
        raise ValueError(
            f"{in_lung:.0%} of the nodule at ({y:g}, {x:g}), on {here}, would lie in lung, but at least half of it must."
        )
    labels[nodule] = SemanticLabel.for_malignancy(rating)
    return labels
