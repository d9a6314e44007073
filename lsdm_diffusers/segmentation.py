"""Semantic maps made from CT slices in HU: the body, the lungs, tissues and nodules (thesis, section 4.3)."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch

from .hounsfield import HU_MAX, HU_MIN
from .labels import SemanticLabel

CHEST_WALL_MM = 6.0  # no lung lies nearer to the skin; the thinnest wall in the slices that were looked at is 10 mm


def _morphology(operation: int, mask: np.ndarray, radius_mm: float, pixel_spacing: float) -> np.ndarray:
    """Erosion, dilation, opening or closing (`cv2.MORPH_...`) with a disk; what lies outside the image changes nothing inside."""
    from skimage.morphology import disk

    return cv2.morphologyEx(mask.astype(np.uint8), operation, disk(max(1, round(radius_mm / pixel_spacing)))).astype(
        bool
    )


def _components(mask: np.ndarray, connectivity: int = 8) -> np.ndarray:
    """Connected components: 0 outside the mask, 1 and up inside."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)[1]


def _gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of `sigma` pixels, cut at four sigma; the image goes on as its edge."""
    edge = 2 * round(4 * sigma) + 1
    return cv2.GaussianBlur(image, (edge, edge), sigma, borderType=cv2.BORDER_REPLICATE)


def body_mask(hu: np.ndarray, pixel_spacing: float = 0.7) -> np.ndarray:
    """Mask (H, W) of the patient, lungs and airways included; table, clothes and tubes beside the patient are not.

    The opening cuts what hangs on the patient by a thin bridge or is thin itself; the largest piece is the trunk, and pieces
    at least a tenth as large, as thick as an arm and not hollow (as a table is) stay with it.
    """
    from skimage.measure import regionprops

    tissue = np.pad(_gaussian(np.clip(hu, HU_MIN, HU_MAX).astype(np.float32), 1.0) > -400, 1)
    air = _components(~tissue, connectivity=4)
    solid = _morphology(cv2.MORPH_OPEN, air != air[0, 0], 6.0, pixel_spacing)  # holes filled
    pieces = regionprops(_components(solid))
    if not pieces:
        return np.zeros(hu.shape, dtype=bool)
    largest = max(pieces, key=lambda piece: piece.area)
    mask = np.zeros(solid.shape, dtype=bool)
    for piece in pieces:
        if piece is not largest:
            distance = cv2.distanceTransform(
                np.pad(piece.image, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
            )
            hollow = tissue[tuple(piece.coords.T)].mean() < 0.8
            if piece.area < 0.1 * largest.area or 2 * distance.max() * pixel_spacing < 50 or hollow:
                continue
        mask[tuple(piece.coords.T)] = True
    return mask[1:-1, 1:-1]


def lung_mask(hu: np.ndarray, body: np.ndarray, pixel_spacing: float = 0.7) -> np.ndarray:
    """Mask (H, W) of the lungs by K-means on HU, erosion and dilation, and marching squares (thesis, section 4.3).

    Vessels and nodules inside a lung belong to it; the trachea, bowel gas and other free air (nearly -1000 HU) do not, nor does
    air under the skin (subcutaneous emphysema) or in its folds, which comes nearer to the skin than a chest wall is thick.

    Args:
        hu: slice in Hounsfield units, (H, W).
        body: mask of the patient, from `body_mask`.
        pixel_spacing: edge of a pixel in mm.
    """
    from skimage.measure import regionprops
    from skimage.morphology import remove_small_holes
    from sklearn.cluster import KMeans

    empty = np.zeros(hu.shape, dtype=bool)
    values = np.clip(hu, HU_MIN, HU_MAX).astype(np.float32)
    inside = values[body]
    if inside.size < 100 or (inside < -500).sum() < 20:
        return empty
    # aerated lung, fat, soft tissue: fixed starts make the clustering deterministic
    means = KMeans(3, init=np.array([[-850.0], [-100.0], [50.0]]), n_init=1).fit(
        inside[:: max(1, inside.size // 20000), None]
    )
    lung_mean, fat_mean = np.sort(means.cluster_centers_[:, 0])[:2]
    if lung_mean > -500:
        return empty
    smooth = _gaussian(values, 0.7)
    aerated = (smooth < (lung_mean + fat_mean) / 2) & body

    core = _morphology(cv2.MORPH_ERODE, aerated, 1.4, pixel_spacing)
    # the edge of the image is no skin: the scan may cut the patient there
    behind_the_chest_wall = _morphology(cv2.MORPH_ERODE, body, CHEST_WALL_MM, pixel_spacing)
    kept = np.zeros_like(core)
    pieces = _components(core)
    for piece in regionprops(pieces):
        rows, columns = piece.coords.T
        area_mm2 = piece.area * pixel_spacing**2
        # gas among stool or under the skin has much partial volume: its darkest tenth tells it from lung
        darkest, median = np.percentile(smooth[rows, columns], (10, 50))
        if area_mm2 < 700:
            free_air = median < -930 or darkest < -965
        else:
            free_air = median < -975 or (area_mm2 < 3000 and darkest < -990)
        if area_mm2 >= 15 and not free_air and behind_the_chest_wall[rows, columns].all():
            kept[rows, columns] = True
    if not kept.any():
        return empty
    lungs = _morphology(cv2.MORPH_DILATE, kept, 2.1, pixel_spacing) & aerated
    lungs = _morphology(cv2.MORPH_CLOSE, np.pad(lungs, 16), 4.2, pixel_spacing)[16:-16, 16:-16] & body
    # airways and gas keep their partial-volume edge; the rest of the aerated edge belongs to the lung
    free_air = _morphology(cv2.MORPH_DILATE, (pieces > 0) & ~kept, 1.4, pixel_spacing) & aerated
    edge = _morphology(cv2.MORPH_DILATE, lungs, 2.1, pixel_spacing) & (values < -400) & body
    lungs = (lungs | edge) & ~free_air
    # a hole of up to 44 mm diameter is a vessel or nodule, a larger one the mediastinum between joined lungs
    lungs = remove_small_holes(lungs, max_size=int(1500 / pixel_spacing**2))
    # marching squares at 0.5 between lung (1) and not (0) encloses the pixels above 0.5
    return _gaussian(lungs.astype(np.float32), 0.7) > 0.5


def semantic_map_from_hu(
    hu, pixel_spacing: float = 0.7, nodules: Iterable[tuple[np.ndarray, float]] = ()
) -> np.ndarray:
    """Make the semantic map of one axial CT slice by the rules of the thesis (section 4.3).

    HU thresholds give body (-400..0), soft tissue (0..200) and high-density tissue (200 and more) inside the body outline; the
    lungs come from K-means, morphology and marching squares; nodules are painted over. Thresholds see the slice through a 3x3
    median, as image noise would otherwise speckle the map.

    Args:
        hu: slice in Hounsfield units, (H, W); values below -1024 (padding outside the scan circle) count as air.
        pixel_spacing: edge of a pixel in mm; sizes of the morphology follow it.
        nodules: pairs of a boolean mask (H, W) and the malignancy rating 1..5.

    Returns:
        `uint8` labels, (H, W), values of `SemanticLabel`.

    Example:
        >>> import numpy as np
        >>> semantic_map_from_hu(np.full((64, 64), -1000)).max()
        np.uint8(0)
    """
    hu = hu.detach().float().cpu().numpy() if isinstance(hu, torch.Tensor) else np.asarray(hu)
    if hu.ndim != 2 or 0 in hu.shape:
        raise ValueError(f"`hu` has shape {hu.shape}, but one slice (H, W) is needed.")
    if not np.isfinite(hu).all():
        raise ValueError(
            f"`hu` contains {int((~np.isfinite(hu)).sum())} values that are not finite, but Hounsfield units are needed."
        )
    if not 0.1 <= pixel_spacing <= 5:
        raise ValueError(f"`pixel_spacing` is {pixel_spacing}, but the edge of a pixel of chest CT is 0.1..5 mm.")
    values = cv2.medianBlur(np.clip(hu, HU_MIN, HU_MAX).astype(np.float32), 3)
    body = body_mask(hu, pixel_spacing)
    labels = np.zeros(hu.shape, dtype=np.uint8)
    labels[body & (values >= -400)] = SemanticLabel.BODY
    labels[body & (values >= 0)] = SemanticLabel.SOFT_TISSUE
    labels[body & (values >= 200)] = SemanticLabel.HIGH_DENSITY
    labels[lung_mask(hu, body, pixel_spacing)] = SemanticLabel.LUNG
    return paint_nodules(labels, nodules)


def paint_nodules(semantic_map: np.ndarray, nodules: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
    """A copy of the map (H, W) with each nodule mask painted over in the label of its malignancy rating 1..5."""
    labels = semantic_map.copy()
    for mask, malignancy in nodules:
        mask = np.asarray(mask)
        if mask.shape != labels.shape or mask.dtype != bool:
            raise ValueError(
                f"A mask in `nodules` has shape {mask.shape} and dtype {mask.dtype}, but a boolean mask {labels.shape} is needed."
            )
        labels[mask] = SemanticLabel.for_malignancy(malignancy)
    return labels


def contour_mask(contour_xy: Sequence[tuple[float, float]], shape: tuple[int, int]) -> np.ndarray:
    """Boolean mask of a nodule contour given as (column, row) points, the outline included, as LIDC's contours are drawn."""
    from skimage.draw import polygon, polygon_perimeter

    columns, rows = np.asarray(contour_xy, dtype=float).T
    mask = np.zeros(shape, dtype=bool)
    if len(rows) < 3:  # a reader's mark of one or two pixels has no area to fill
        points = np.stack([rows, columns], axis=1).round().astype(int)
        points = points[((points >= 0) & (points < shape)).all(axis=1)]
        mask[tuple(points.T)] = True
        return mask
    mask[polygon(rows, columns, shape)] = True
    mask[polygon_perimeter(rows, columns, shape, clip=True)] = True
    return mask
