"""The file of the map that a slice was made from."""

import io

import numpy as np
from PIL.PngImagePlugin import PngInfo

from ..semantic_map import semantic_map_image


def map_png(semantic_map: np.ndarray, pixel_spacing: float) -> bytes:
    """Content of a palette PNG of a map, which the upload and the commands read again.

    Args:
        semantic_map: labels 0..7, (H, W).
        pixel_spacing: edge of a pixel in mm, kept as the PNG text "pixel_spacing_mm".
    """
    text = PngInfo()
    text.add_text("pixel_spacing_mm", f"{pixel_spacing:.6g}")
    file = io.BytesIO()
    semantic_map_image(semantic_map).save(file, format="png", pnginfo=text)
    return file.getvalue()
