"""What lies around the patient in a slice: table, clothes and air, which no label tells apart."""

import numpy as np
from scipy.ndimage import binary_dilation, label

from .hounsfield import HU_MIN
from .labels import SemanticLabel

SKIN_PIXELS = 3  # background this near to the body is kept, as a map's outline cuts the skin's partial volume off


def outside_body(semantic_map: np.ndarray) -> np.ndarray:
    """Mask (H, W) of the background around the patient: what is joined to the border, except for 3 pixels at the skin.

    The table and clothes lie there, and no label tells them from air.
    """
    regions, _ = label(np.pad(semantic_map == SemanticLabel.BACKGROUND, 1, constant_values=True))
    outside = (regions == regions[0, 0])[1:-1, 1:-1]
    return outside & ~binary_dilation(~outside, iterations=SKIN_PIXELS)


def blanked(hu: np.ndarray, semantic_map: np.ndarray) -> np.ndarray:
    """A copy of a slice (H, W) in HU with -1024 `outside_body` of its map."""
    return np.where(outside_body(semantic_map), HU_MIN, hu)
