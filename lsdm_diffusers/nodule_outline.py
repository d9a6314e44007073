"""Lobulation and spiculation as what they are: the outline of a nodule in the map.

Given the map, a U-Net can hardly show these two features, because the map draws the outline. So they are drawn into
the map: a nodule gets an outline between a smooth ellipse and that of a real nodule that radiologists rated 4 or more,
with the area and the orientation that it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from .labels import SemanticLabel
from .nodule_features import HIGHEST_RATING, LOWEST_RATING, feature_rating
from .semantic_map import Nodule

OUTLINE_FEATURES = ("lobulation", "spiculation")
MIN_AREA = 60  # pixels; a smaller nodule cannot show its outline: real ones of all ratings look alike there
FINENESS = 4  # points of the grid per pixel on which outlines are mixed
GRID_MARGIN = 1.8  # half the edge of that grid over the longest half axis of the nodule
CHOICE = 8  # outlines most typical of the asked features, of which one is taken
MAX_LOSS = 0.25  # share of a new outline that may lie on other tissue, which stays as it is
POINT_UNIT = 1000  # of the library's coordinates: 1 / 1000 of the root of the area


@dataclass(frozen=True)
class OutlineLibrary:
    """Outlines of real nodules.

    Args:
        points: (N, P, 2), rows and columns of polygons of area 1, their centroids at 0, their long axes along rows.
        lobulation: (N,), mean rating of the readers.
        spiculation: (N,), mean rating of the readers.
    """

    points: NDArray[np.float64]
    lobulation: NDArray[np.float64]
    spiculation: NDArray[np.float64]

    def typical(self, wishes: Mapping[str, float]) -> NDArray[np.intp]:
        """Indices of the outlines that show the asked features most and the other one least, the best first."""
        score = np.zeros(len(self.points))
        for feature in OUTLINE_FEATURES:
            ratings = getattr(self, feature)
            score += ratings if wishes.get(feature, LOWEST_RATING) > LOWEST_RATING else -ratings / 2
        return np.argsort(-score, kind="stable")[:CHOICE]


@lru_cache(maxsize=1)
def outline_library() -> OutlineLibrary:
    """The outlines that ship with the package: of LIDC-IDRI's training patients (CC BY 3.0)."""
    try:
        folder = files("lsdm_diffusers")
    except ModuleNotFoundError:  # the code came with a checkpoint, as one file
        raise ValueError("the outlines of nodules come with the package lsdm_diffusers, which is missing.") from None
    with as_file(folder / "outlines" / "lidc.npz") as path, np.load(path, allow_pickle=False) as arrays:
        return OutlineLibrary(
            points=arrays["points"].astype(np.float64) / POINT_UNIT,
            lobulation=arrays["lobulation"].astype(np.float64),
            spiculation=arrays["spiculation"].astype(np.float64),
        )


def principal_axes(points: NDArray[np.float64]) -> tuple[float, float, float]:
    """Angle of the long axis to the rows, in radians, and the deviations along the long and the short axis.

    Args:
        points: (N, 2), rows and columns of the pixels of a shape.
    """
    values, vectors = np.linalg.eigh(np.cov(points.T) if len(points) > 1 else np.eye(2))
    short, long = np.sqrt(np.maximum(values, 0.05))  # a line of pixels has a width, too
    return float(np.arctan2(vectors[1, 1], vectors[0, 1])), float(long), float(short)


def signed_distance(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance to the outline in grid points, positive inside and negative outside."""
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(inside) - distance_transform_edt(~inside))


def _grid_mask(points: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    from skimage.draw import polygon2mask

    return np.asarray(polygon2mask((size, size), points))


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import label

    pieces, count = label(mask, structure=np.ones((3, 3)))
    return mask if count < 2 else np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))


def check_size(nodule: Nodule) -> None:
    """Raise ValueError for a nodule too small to show an outline."""
    if nodule.area < MIN_AREA:
        raise ValueError(
            f"the nodule at {tuple(round(value) for value in nodule.centroid_yx)} has {nodule.area} pixels, but its "
            f"outline shows lobulation and spiculation only from {MIN_AREA} pixels on."
        )


def reshape_nodule(
    semantic_map: NDArray[np.uint8],
    nodule: Nodule,
    lobulation: float | None = None,
    spiculation: float | None = None,
    seed: int = 0,
) -> tuple[NDArray[np.uint8], Nodule]:
    """Give a nodule the outline of asked ratings, with its own area, place, orientation and label.

    Rating 1 is an ellipse, 5 the outline of a real nodule rated 4 or more; between them the outline changes smoothly.
    Signed distances of the ellipse and of the real outline are mixed, and as many pixels are taken as before.

    Args:
        semantic_map: labels 0..7, (H, W).
        nodule: one of `find_nodules(semantic_map)`, of at least 60 pixels.
        lobulation: rating 1..5; None is as 1.
        spiculation: rating 1..5; None is as 1.
        seed: which of the eight most typical outlines is taken.

    Returns:
        A changed copy of the map, and the nodule as it lies there. What it leaves becomes lung; where the new outline
        would reach other tissue, that stays.

    Raises:
        ValueError: if neither rating is given, for ratings outside 1..5, for a nodule too small to show an outline, or
            one with no room in the lung for another outline.
    """
    from scipy.ndimage import binary_dilation

    given = {"lobulation": lobulation, "spiculation": spiculation}
    wishes = {name: feature_rating(name, value) for name, value in given.items() if value is not None}
    if not wishes:
        raise ValueError("`lobulation` and `spiculation` are both None, but at least one rating 1..5 is needed.")
    check_size(nodule)
    old = nodule.mask((semantic_map.shape[0], semantic_map.shape[1]))
    others = (semantic_map >= SemanticLabel.NODULE_BENIGN) & ~old
    beside_others = binary_dilation(others, structure=np.ones((3, 3)))  # two nodules that touch would be one
    free = old | (semantic_map == SemanticLabel.LUNG) & ~beside_others
    index = outline_library().typical(wishes)[seed % CHOICE]
    best = None
    for turned in (False, True):
        for mirrored in (False, True):
            new = _placed(_mixed_outline(nodule, wishes, int(index), turned, mirrored), nodule, semantic_map.shape)
            kept = float((new & free).sum() / max(new.sum(), 1)) * min(1.0, new.sum() / nodule.area)
            if best is None or kept > best[0]:
                best = (kept, new)
    assert best is not None
    if best[0] < 1 - MAX_LOSS:
        raise ValueError(
            f"the nodule at {tuple(round(value) for value in nodule.centroid_yx)} lies against other tissue: "
            f"only {best[0]:.0%} of another outline would have room in the lung, and {1 - MAX_LOSS:.0%} are needed."
        )
    changed = semantic_map.copy()
    changed[old] = SemanticLabel.LUNG
    drawn = _largest_piece(best[1] & free)
    changed[drawn] = nodule.label
    return changed, Nodule.from_mask(drawn, nodule.label)


def _mixed_outline(
    nodule: Nodule, wishes: Mapping[str, float], index: int, turned: bool, mirrored: bool
) -> NDArray[np.bool_]:
    """The pixels of the new shape, (edge, edge), the nodule's centroid in the middle."""
    angle, long, short = principal_axes(np.argwhere(nodule.box_mask).astype(np.float64))
    # an ellipse of these deviations has half axes of twice their length; scaled to the nodule's area
    scale = np.sqrt(nodule.area / (4 * np.pi * long * short))
    half_long, half_short = 2 * long * scale * FINENESS, 2 * short * scale * FINENESS
    outline = outline_library().points[index] * np.sqrt(nodule.area) * FINENESS
    reach = max(GRID_MARGIN * half_long, float(np.abs(outline).max()) + FINENESS)
    size = 2 * int(np.ceil(reach / FINENESS)) * FINENESS + FINENESS
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-np.sin(angle), np.cos(angle)])
    offset = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij"), -1)
    ellipse = ((offset @ along) / half_long) ** 2 + ((offset @ across) / half_short) ** 2 <= 1

    rows, columns = (-outline[:, 0] if turned else outline[:, 0]), (-outline[:, 1] if mirrored else outline[:, 1])
    placed = rows[:, None] * along + columns[:, None] * across + (size - 1) / 2
    span = HIGHEST_RATING - LOWEST_RATING
    weight = max((rating - LOWEST_RATING) / span for rating in wishes.values())
    mixed = (1 - weight) * signed_distance(ellipse) + weight * signed_distance(_grid_mask(placed, size))
    edge = size // FINENESS
    by_pixel = mixed.reshape(edge, FINENESS, edge, FINENESS).mean((1, 3))
    chosen = np.zeros(edge * edge, dtype=bool)
    chosen[np.argsort(-by_pixel, axis=None, kind="stable")[: nodule.area]] = True
    return _largest_piece(chosen.reshape(edge, edge))


def _placed(outline: NDArray[np.bool_], nodule: Nodule, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The new shape in the map, cut at its border."""
    mask = np.zeros(shape, dtype=bool)
    top, left = (round(centre) - len(outline) // 2 for centre in nodule.centroid_yx)
    rows, columns = np.nonzero(outline)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    mask[rows[inside], columns[inside]] = True
    return mask
