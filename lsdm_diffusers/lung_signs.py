"""Signs that tell lung from free air by texture, shape and place, where HU alone do not.

The limits were set on slices of public collections, cut at many places.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .field_of_view import edge_of
from .labels import BODY_FROM_HU
from .mask_filters import Mask, components, depth_in_mm

# Vessels in a dark piece
VESSEL_ABOVE_MEDIAN_HU = 100.0  # noise of smoothed air stays below it; so do walls of bullae
VESSEL_DEPTH_MM = 3.0  # vessels count this far from the outline, which is brightened by partial volume
CM2 = 100.0  # in mm2
MIN_VESSEL_SHARE = 0.015  # of a lung, however dark; 0.025 is the least among darkened lungs, gas has 0.001
MIN_VESSELS_PER_CM2 = 0.1  # one bright patch is a fold of bowel; lungs have 0.13 and more

# Air at the edge of the field of view: a cut lung, or the outside of the patient
MIN_CUT_LUNG_MM2 = 300.0  # of smaller pieces the signs are chance
MAX_EDGE_LENGTH = 3.3  # along the edge, by the root of the area; air outside is a long, thin crescent
MIN_SPREAD_HU, MAX_SPREAD_HU = 25.0, 300.0  # between quartiles; foam is flatter, clothes vary more
WALL_MM = (3.0, 8.0)  # beyond the partial volume of the border; walls of tables are thinner
MIN_WALL_SHARE = 0.85  # of that band is tissue, around lung
FAT_HU = (-200.0, -20.0)
MAX_FAT_SHARE = 0.62  # of that band: fat lies below skin, but muscle, ribs, heart and liver lie around lung
RIB_MM = (2.0, 12.0)  # ribs and spine lie so near to lung, but not to air outside
RIB_FROM_HU = 180.0
MIN_RIB_SHARE = 0.003  # of that band
MIN_CUT_VESSELS_PER_CM2 = 0.12  # foam has none
DARK_BELOW_HU = -950.0  # a darker piece may be plain air, and has to show stronger signs
MIN_DARK_CUT_LUNG_MM2 = 1500.0
MIN_DARK_RIB_SHARE = 0.03
MIN_DARK_VESSELS_PER_CM2 = 0.2


class Vessels(NamedTuple):
    """Bright patches inside a piece of air."""

    share: float  # of the inner area
    per_cm2: float


def find_vessels(smooth: NDArray[np.float32], piece: Mask, pixel_spacing: float) -> Vessels:
    """Measure the bright patches inside a piece of air, holes of the piece included.

    Args:
        smooth: smoothed slice in HU, (H, W).
        piece: its pixels, boolean (H, W).
        pixel_spacing: edge of a pixel, in mm.
    """
    outside = components(np.pad(~piece, 1, constant_values=True), connectivity=4)
    filled = outside != outside[0, 0]
    inner = depth_in_mm(filled, pixel_spacing)[1:-1, 1:-1] >= VESSEL_DEPTH_MM
    area_cm2 = inner.sum() * pixel_spacing**2 / CM2
    if not area_cm2:
        return Vessels(0.0, 0.0)
    bright = inner & (smooth > np.median(smooth[piece]) + VESSEL_ABOVE_MEDIAN_HU)
    return Vessels(float(bright.sum() / inner.sum()), float(components(bright).max() / area_cm2))


def has_lung_vessels(smooth: NDArray[np.float32], piece: Mask, pixel_spacing: float) -> bool:
    """Whether a piece of air, of the size of a lung, holds the vessels of one.

    Args:
        smooth: smoothed slice in HU, (H, W).
        piece: its pixels, boolean (H, W).
        pixel_spacing: edge of a pixel, in mm.
    """
    vessels = find_vessels(smooth, piece, pixel_spacing)
    return vessels.share >= MIN_VESSEL_SHARE and vessels.per_cm2 >= MIN_VESSELS_PER_CM2


def find_outside(
    values: NDArray[np.float32], smooth: NDArray[np.float32], view: Mask, pixel_spacing: float
) -> tuple[Mask, Mask]:
    """Split the air at the edge of the field of view into the outside of the patient and cut lungs.

    Args:
        values: slice in HU, (H, W).
        smooth: the same, smoothed.
        view: field of view, (H, W).
        pixel_spacing: edge of a pixel, in mm.

    Returns:
        Two boolean masks (H, W): the outside, with what is beyond the field of view; and cut lungs.
    """
    tissue = view & (smooth > BODY_FROM_HU)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((view & ~tissue).astype(np.uint8), connectivity=4)
    edge_pixels = np.bincount(labels[edge_of(view)], minlength=count)
    edge_pixels[0] = 0  # tissue and padding
    is_outside = edge_pixels > 0
    is_cut_lung = np.zeros(count, dtype=bool)
    margin = int(np.ceil(RIB_MM[1] / pixel_spacing)) + 1
    for piece in np.flatnonzero(is_outside):
        x, y, width, height, pixels = stats[piece]
        area_mm2 = pixels * pixel_spacing**2
        edge_length = edge_pixels[piece] * pixel_spacing / np.sqrt(area_mm2)
        if area_mm2 < MIN_CUT_LUNG_MM2 or edge_length > MAX_EDGE_LENGTH:
            continue
        box = (slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin))
        is_cut_lung[piece] = _is_cut_lung(
            values[box], smooth[box], labels[box] == piece, tissue[box], view[box], pixel_spacing
        )
    return ~view | (is_outside & ~is_cut_lung)[labels], is_cut_lung[labels]


def _is_cut_lung(
    values: NDArray[np.float32],
    smooth: NDArray[np.float32],
    piece: Mask,
    tissue: Mask,
    view: Mask,
    pixel_spacing: float,
) -> bool:
    """Whether air at the edge of the field of view has the texture of lung, and a chest around it."""
    quarter, median, three_quarters = np.percentile(smooth[piece], (25, 50, 75))
    if not MIN_SPREAD_HU <= three_quarters - quarter <= MAX_SPREAD_HU:
        return False
    dark = median < DARK_BELOW_HU
    if dark and piece.sum() * pixel_spacing**2 < MIN_DARK_CUT_LUNG_MM2:
        return False
    distance = depth_in_mm(~piece, pixel_spacing)
    wall = view & (distance >= WALL_MM[0]) & (distance <= WALL_MM[1])
    if not wall.any() or tissue[wall].mean() < MIN_WALL_SHARE:
        return False
    if ((values[wall] > FAT_HU[0]) & (values[wall] < FAT_HU[1])).mean() > MAX_FAT_SHARE:
        return False
    near = view & (distance >= RIB_MM[0]) & (distance <= RIB_MM[1])
    if (values[near] > RIB_FROM_HU).mean() < (MIN_DARK_RIB_SHARE if dark else MIN_RIB_SHARE):
        return False
    least = MIN_DARK_VESSELS_PER_CM2 if dark else MIN_CUT_VESSELS_PER_CM2
    return find_vessels(smooth, piece, pixel_spacing).per_cm2 >= least
