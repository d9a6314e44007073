"""Semantic maps made from CT slices in HU: the body, the lungs, tissues and nodules (thesis, section 4.3).

Sizes are in mm, so that slices of every pixel spacing are segmented alike. The constants were set on slices of public
collections; each comment says what the constant tells apart.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .ct_limits import DEFAULT_PIXEL_SPACING, check_pixel_spacing
from .field_of_view import field_of_view, gaussian_within
from .hounsfield import HU_MAX, HU_MIN
from .labels import BODY_FROM_HU, HIGH_DENSITY_FROM_HU, SOFT_TISSUE_FROM_HU, SemanticLabel
from .lung_signs import find_outside, has_lung_vessels
from .mask_filters import Mask, components, gaussian, morphology

# The functions import scikit-image and scikit-learn: that takes a second, which a reader of maps need not wait.

# Tissues
MEDIAN_EDGE_PIXELS = 3  # of the median filter that the tissue bounds see; without it image noise speckles the map

# Body
SKIN_SIGMA_PIXELS = 1.0  # smoothing before the threshold, against a skin frayed by noise
BODY_OPENING_RADIUS_MM = 6.0  # cuts table top, tubes and clothes, which are thinner than 12 mm, from the patient
MIN_SHARE_OF_TRUNK = 0.1  # smaller pieces beside the trunk are no arms
MIN_ARM_THICKNESS_MM = 50.0  # an arm is thicker; a table top is not
MIN_SOLID_SHARE = 0.8  # part of a piece that is tissue; a table is hollow and stays below

# K-means of the HU inside the body
AERATED_BELOW_HU = -500.0  # half-way from air (-1000) to water (0): a cluster below it is aerated lung
MIN_BODY_PIXELS = 100  # fewer values make no clusters
MIN_AERATED_PIXELS = 20  # fewer show no lung
KMEANS_START_HU = (-850.0, -100.0, 50.0)  # aerated lung, fat, soft tissue; fixed, so that clusters are deterministic
KMEANS_MAX_PIXELS = 20000  # of a larger body every n-th pixel is clustered, which is enough for three means

# Pieces of the aerated region: lung, or free air (airways, bowel gas, air under the skin)
AERATED_SIGMA_PIXELS = 0.7  # smoothing before the threshold, against holes that noise tears into the lung
CORE_EROSION_RADIUS_MM = 1.4  # cuts the thin bridges between lung and airways
MIN_CORE_MM2 = 15.0  # smaller pieces are noise
CHEST_WALL_MM = 6.0  # no lung lies nearer to the skin; the thinnest wall in the slices looked at is 10 mm
DARKEST_PERCENTILE = 10.0  # gas among stool or under the skin has much partial volume; its darkest tenth shows the gas
SMALL_CORE_MM2 = 700.0  # of the size of a trachea or a loop of bowel: held to the first two limits
SMALL_FREE_AIR_MEDIAN_HU = -930.0  # a small piece of a lower median is free air: normal lung is about -850
SMALL_FREE_AIR_DARKEST_HU = -965.0  # so is one whose darkest tenth lies lower
FREE_AIR_MEDIAN_HU = -975.0  # a larger piece of a lower median is free air, or lung that shows its vessels
LARGE_CORE_MM2 = 3000.0  # from the size of a lung on the median alone counts, as bullae are as dark as gas
FREE_AIR_DARKEST_HU = -990.0  # a piece smaller than a lung whose darkest tenth lies lower is free air
MIN_PAIR_BALANCE = 0.4  # the smaller of two lungs by the larger, where they have no vessels, as in a phantom
MIN_PAIR_SHARE_OF_BODY = 0.15  # both fill as much of the body; gas in bowel fills less

# From the cores to the lungs
LUNG_DILATION_RADIUS_MM = 2.1  # gives back what the erosion took, and a pixel more; the aerated region bounds it
LUNG_CLOSING_RADIUS_MM = 4.2  # closes the gaps of vessels and bronchi at the hilum and along the wall
CLOSING_MARGIN_PIXELS = 16  # empty margin, so that closing does not join lung to the edge of the image
FREE_AIR_RIM_RADIUS_MM = 1.4  # airways and gas keep their partial-volume edge of this width
LUNG_EDGE_RADIUS_MM = 2.1  # the partial-volume edge of the lung reaches so far
MAX_HOLE_MM2 = 1500.0  # 44 mm in diameter: a vessel or nodule; a larger hole is the mediastinum between joined lungs
OUTLINE_SIGMA_PIXELS = 0.7  # rounds the steps of the outline
OUTLINE_LEVEL = 0.5  # half-way between lung (1) and not (0)


def body_mask(hu: np.ndarray, pixel_spacing: float = DEFAULT_PIXEL_SPACING) -> Mask:
    """Mask of the patient, lungs and airways included; table, clothes and tubes beside the patient are left out.

    Opening cuts off what is thin, or hangs on the patient by a thin bridge. The largest piece is the trunk. Arms stay
    with it.

    Args:
        hu: slice in Hounsfield units, (H, W).
        pixel_spacing: edge of a pixel, in mm.

    Returns:
        Boolean mask (H, W); empty where nothing is as thick as a patient.
    """
    from skimage.measure import regionprops

    values = np.clip(hu, HU_MIN, HU_MAX).astype(np.float32)
    view = field_of_view(values)
    smooth = gaussian_within(values, view, SKIN_SIGMA_PIXELS)
    tissue = np.pad(view & (smooth > BODY_FROM_HU), 1)
    outside, cut_lungs = (np.pad(mask, 1) for mask in find_outside(values, smooth, view, pixel_spacing))
    inside = np.pad(view, 1) & ~outside
    # Beyond a cut lung the patient goes on, so that opening does not round the lung there.
    beyond = ~np.pad(view, 1) & morphology(cv2.MORPH_DILATE, cut_lungs, 2 * BODY_OPENING_RADIUS_MM, pixel_spacing)
    solid = inside & morphology(cv2.MORPH_OPEN, inside | beyond, BODY_OPENING_RADIUS_MM, pixel_spacing)
    pieces = regionprops(components(solid))
    if not pieces:
        return np.zeros(hu.shape, dtype=bool)
    trunk = max(pieces, key=lambda piece: piece.area)
    mask = np.zeros(solid.shape, dtype=bool)
    for piece in pieces:
        if piece is trunk or _is_arm(piece, trunk.area, tissue, pixel_spacing):
            mask[tuple(piece.coords.T)] = True
    return mask[1:-1, 1:-1]


def _is_arm(piece: Any, trunk_area: float, tissue: Mask, pixel_spacing: float) -> bool:
    """Whether a piece (of `regionprops`) beside the trunk is an arm: large, not hollow, and thick."""
    if piece.area < MIN_SHARE_OF_TRUNK * trunk_area or tissue[tuple(piece.coords.T)].mean() < MIN_SOLID_SHARE:
        return False
    depth = cv2.distanceTransform(np.pad(piece.image, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return bool(2 * depth.max() * pixel_spacing >= MIN_ARM_THICKNESS_MM)


def lung_mask(hu: np.ndarray, body: Mask, pixel_spacing: float = DEFAULT_PIXEL_SPACING) -> Mask:
    """Mask of the lungs by K-means on HU, erosion and dilation, and marching squares (thesis, section 4.3).

    Vessels and nodules inside a lung belong to it. The trachea, bowel gas and other free air (nearly -1000 HU) do not.
    Nor does air under the skin (subcutaneous emphysema) or in its folds, which comes nearer to the skin than a chest
    wall is thick.

    Args:
        hu: slice in Hounsfield units, (H, W).
        body: mask of the patient, from `body_mask`.
        pixel_spacing: edge of a pixel, in mm.

    Returns:
        Boolean mask (H, W); empty where the slice shows no lung.
    """
    values = np.clip(hu, HU_MIN, HU_MAX).astype(np.float32)
    limit = _aerated_limit(values[body])
    if limit is None:
        return np.zeros(hu.shape, dtype=bool)
    smooth = gaussian(values, AERATED_SIGMA_PIXELS)
    aerated = (smooth < limit) & body
    # What is beyond the field of view counts as body: its edge is no skin, as the scan may cut the patient there.
    behind_chest_wall = morphology(cv2.MORPH_ERODE, body | ~field_of_view(values), CHEST_WALL_MM, pixel_spacing)
    cores, free_air = _split_aerated(smooth, aerated, body, behind_chest_wall, pixel_spacing)
    if not cores.any():
        return cores
    return _lungs_from_cores(values, cores, free_air, aerated, body, pixel_spacing)


def _aerated_limit(inside: NDArray[np.float32]) -> np.float32 | None:
    """The HU half-way between the clusters of lung and fat; None where the values (N,) of the body show no lung."""
    from sklearn.cluster import KMeans

    if inside.size < MIN_BODY_PIXELS or (inside < AERATED_BELOW_HU).sum() < MIN_AERATED_PIXELS:
        return None
    step = max(1, inside.size // KMEANS_MAX_PIXELS)
    clusters = KMeans(3, init=np.array(KMEANS_START_HU)[:, None], n_init=1).fit(inside[::step, None])
    lung_mean, fat_mean = np.sort(clusters.cluster_centers_[:, 0])[:2]
    return None if lung_mean > AERATED_BELOW_HU else (lung_mean + fat_mean) / 2


def _split_aerated(
    smooth: NDArray[np.float32], aerated: Mask, body: Mask, behind_chest_wall: Mask, pixel_spacing: float
) -> tuple[Mask, Mask]:
    """Split the eroded aerated region into cores of the lungs and the rest, free air: two masks (H, W)."""
    from skimage.measure import regionprops

    eroded = morphology(cv2.MORPH_ERODE, aerated, CORE_EROSION_RADIUS_MM, pixel_spacing)
    cores = np.zeros_like(eroded)
    dark_pieces = []  # as large as a lung, as dark as free air and without vessels
    for piece in regionprops(components(eroded)):
        pixels = tuple(piece.coords.T)
        area_mm2 = piece.area * pixel_spacing**2
        if area_mm2 < MIN_CORE_MM2 or not behind_chest_wall[pixels].all():
            continue
        if not _is_free_air(smooth[pixels], area_mm2):
            cores[pixels] = True
        elif area_mm2 >= LARGE_CORE_MM2:
            if has_lung_vessels(smooth[piece.slice], piece.image, pixel_spacing):
                cores[pixels] = True
            else:
                dark_pieces.append(piece)
    if not cores.any() and _are_plain_lungs(dark_pieces, body):
        for piece in dark_pieces:
            cores[tuple(piece.coords.T)] = True
    return cores, eroded & ~cores


def _is_free_air(values: NDArray[np.float32], area_mm2: float) -> bool:
    """Whether a piece of the aerated region is air in airways, bowel or under the skin, and not lung.

    Args:
        values: its pixels in HU, smoothed, (N,).
        area_mm2: its area.
    """
    darkest, median = np.percentile(values, (DARKEST_PERCENTILE, 50))
    if area_mm2 < SMALL_CORE_MM2:
        return bool(median < SMALL_FREE_AIR_MEDIAN_HU or darkest < SMALL_FREE_AIR_DARKEST_HU)
    if area_mm2 < LARGE_CORE_MM2 and darkest < FREE_AIR_DARKEST_HU:
        return True
    return bool(median < FREE_AIR_MEDIAN_HU)


def _are_plain_lungs(pieces: Sequence[Any], body: Mask) -> bool:
    """Whether dark pieces (of `regionprops`) without vessels are lungs of a phantom: a pair that fills the chest."""
    middle = np.nonzero(body)[1].mean()
    left = sum(piece.area for piece in pieces if piece.centroid[1] < middle)
    right = sum(piece.area for piece in pieces if piece.centroid[1] >= middle)
    is_pair = min(left, right) >= MIN_PAIR_BALANCE * max(left, right)
    return bool(is_pair and left + right >= MIN_PAIR_SHARE_OF_BODY * body.sum())


def _lungs_from_cores(
    values: NDArray[np.float32], cores: Mask, free_air: Mask, aerated: Mask, body: Mask, pixel_spacing: float
) -> Mask:
    """Grow the cores of the lungs to their outline; fill vessels and nodules."""
    from skimage.morphology import remove_small_holes

    lungs = morphology(cv2.MORPH_DILATE, cores, LUNG_DILATION_RADIUS_MM, pixel_spacing) & aerated
    margin = CLOSING_MARGIN_PIXELS
    closed = morphology(cv2.MORPH_CLOSE, np.pad(lungs, margin), LUNG_CLOSING_RADIUS_MM, pixel_spacing)
    lungs = closed[margin:-margin, margin:-margin] & body
    free_air = morphology(cv2.MORPH_DILATE, free_air, FREE_AIR_RIM_RADIUS_MM, pixel_spacing) & aerated
    near_lungs = morphology(cv2.MORPH_DILATE, lungs, LUNG_EDGE_RADIUS_MM, pixel_spacing)
    edge = near_lungs & (values < BODY_FROM_HU) & body
    lungs = (lungs | edge) & ~free_air
    lungs = remove_small_holes(lungs, max_size=int(MAX_HOLE_MM2 / pixel_spacing**2))
    # The outline of marching squares at this level encloses the pixels above it.
    outlined: Mask = gaussian(lungs.astype(np.float32), OUTLINE_SIGMA_PIXELS) > OUTLINE_LEVEL
    return outlined


def semantic_map_from_hu(
    hu: ArrayLike | torch.Tensor,
    pixel_spacing: float = DEFAULT_PIXEL_SPACING,
    nodules: Iterable[tuple[np.ndarray, float]] = (),
) -> NDArray[np.uint8]:
    """Make the semantic map of one axial CT slice by the rules of the thesis (section 4.3).

    HU thresholds give body (-400..0), soft tissue (0..200) and high-density tissue (200 and more) inside the outline
    of the body. The lungs come from K-means, morphology and marching squares. Nodules are painted over.

    Args:
        hu: slice in Hounsfield units, (H, W); values below -1024 (padding outside the scan circle) count as air.
        pixel_spacing: edge of a pixel, 0.1..5 mm; sizes of the morphology follow it.
        nodules: pairs of a boolean mask (H, W) and the malignancy rating 1..5.

    Returns:
        `uint8` labels, (H, W), values of `SemanticLabel`.

    Raises:
        ValueError: for another number of dimensions, values that are not finite, a pixel spacing or a rating outside
            its range, or a mask of another shape or dtype.

    Example:
        >>> import numpy as np
        >>> semantic_map_from_hu(np.full((64, 64), -1000)).max()
        np.uint8(0)
    """
    hu = hu.detach().float().cpu().numpy() if isinstance(hu, torch.Tensor) else np.asarray(hu)
    if hu.ndim != 2 or 0 in hu.shape:
        raise ValueError(f"`hu` has shape {hu.shape}, but one slice (H, W) is needed.")
    if not np.isfinite(hu).all():
        wrong = int((~np.isfinite(hu)).sum())
        raise ValueError(f"`hu` contains {wrong} values that are not finite, but Hounsfield units are needed.")
    check_pixel_spacing(pixel_spacing)
    values = cv2.medianBlur(np.clip(hu, HU_MIN, HU_MAX).astype(np.float32), MEDIAN_EDGE_PIXELS)
    body = body_mask(hu, pixel_spacing)
    labels = np.zeros(hu.shape, dtype=np.uint8)
    labels[body & (values >= BODY_FROM_HU)] = SemanticLabel.BODY
    labels[body & (values >= SOFT_TISSUE_FROM_HU)] = SemanticLabel.SOFT_TISSUE
    labels[body & (values >= HIGH_DENSITY_FROM_HU)] = SemanticLabel.HIGH_DENSITY
    labels[lung_mask(hu, body, pixel_spacing)] = SemanticLabel.LUNG
    return paint_nodules(labels, nodules)


def paint_nodules(semantic_map: NDArray[np.uint8], nodules: Iterable[tuple[np.ndarray, float]]) -> NDArray[np.uint8]:
    """Paint nodules over a copy of a map, each in the label of its malignancy.

    Args:
        semantic_map: labels, (H, W).
        nodules: pairs of a boolean mask (H, W) and the malignancy rating 1..5.

    Raises:
        ValueError: for a mask of another shape or dtype, or a rating outside 1..5.
    """
    labels = semantic_map.copy()
    for mask, malignancy in nodules:
        mask = np.asarray(mask)
        if mask.shape != labels.shape or mask.dtype != bool:
            raise ValueError(
                f"A mask in `nodules` has shape {mask.shape} and dtype {mask.dtype}, "
                f"but a boolean mask {labels.shape} is needed."
            )
        labels[mask] = SemanticLabel.for_malignancy(malignancy)
    return labels


def contour_mask(contour_xy: Sequence[tuple[float, float]] | np.ndarray, shape: tuple[int, int]) -> Mask:
    """Mask of a nodule from its contour; the outline belongs to it, as in LIDC's contours.

    Args:
        contour_xy: points (column, row), (N, 2), in pixels; one or two points are a mark without an area.
        shape: height and width of the slice; what lies outside is cut.

    Returns:
        Boolean mask of that shape.
    """
    from skimage.draw import polygon, polygon_perimeter

    columns, rows = np.asarray(contour_xy, dtype=float).T
    mask = np.zeros(shape, dtype=bool)
    if len(rows) < 3:
        points = np.stack([rows, columns], axis=1).round().astype(int)
        points = points[((points >= 0) & (points < shape)).all(axis=1)]
        mask[tuple(points.T)] = True
        return mask
    mask[polygon(rows, columns, shape)] = True
    mask[polygon_perimeter(rows, columns, shape, clip=True)] = True
    return mask
