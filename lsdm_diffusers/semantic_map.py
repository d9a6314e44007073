"""Semantic maps of axial chest CT: reading, checking, saving as an image, and finding the nodules of a map.

The labels themselves are in `labels`, maps made from HU in `segmentation`; both can be imported from here, too.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from .labels import LABEL_NAMES, NUM_LABELS, PALETTE, SemanticLabel, check_label_tensor, check_labels, max_pool_one_hot
from .segmentation import body_mask, lung_mask, paint_nodules, semantic_map_from_hu

__all__ = [
    "LABEL_NAMES",
    "NUM_LABELS",
    "PALETTE",
    "Nodule",
    "SemanticLabel",
    "body_mask",
    "check_label_tensor",
    "find_nodules",
    "lung_mask",
    "max_pool_one_hot",
    "paint_nodules",
    "read_semantic_map",
    "semantic_map_from_hu",
    "semantic_map_image",
]


def read_semantic_map(source) -> np.ndarray:
    """Read one semantic map, or a stack of them, and check its labels.

    Args:
        source: a PIL image of mode "L" or "P", an integer array or tensor of shape (H, W) or (B, H, W), or the path of a PNG file.

    Returns:
        `uint8` array of labels 0..7, of the shape of `source`.

    Raises:
        ValueError: for another mode, dtype or number of dimensions, or a value outside 0..7, which is named.
    """
    if isinstance(source, (str, Path)):
        with PIL.Image.open(source) as image:
            image.load()
        return read_semantic_map(image)
    if isinstance(source, PIL.Image.Image):
        if source.mode not in ("L", "P"):
            raise ValueError(
                f'`semantic_map` is an image of mode "{source.mode}", but mode "L" or "P" with the label as pixel value is needed.'
            )
        labels = np.asarray(source)
    elif isinstance(source, torch.Tensor):
        labels = source.detach().cpu()
        labels = (labels.float() if labels.dtype == torch.bfloat16 else labels).numpy()
    elif isinstance(source, np.ndarray):
        labels = source
    else:
        raise ValueError(
            f"`semantic_map` is a {type(source).__name__}, but a PIL image, an array, a tensor or the path of a PNG is needed."
        )
    if labels.ndim not in (2, 3) or 0 in labels.shape:
        raise ValueError(f"`semantic_map` has shape {tuple(labels.shape)}, but (H, W) or (B, H, W) is needed.")
    return check_labels(labels).astype(np.uint8)


def semantic_map_image(semantic_map: np.ndarray) -> PIL.Image.Image:
    """The map (H, W) as a palette image (mode "P"): seen in colours, while each pixel value stays the label."""
    labels = read_semantic_map(semantic_map)
    if labels.ndim != 2:
        raise ValueError(f"`semantic_map` has shape {labels.shape}, but one map (H, W) is needed for an image.")
    image = PIL.Image.fromarray(labels).convert("P")  # "L" to "P" keeps the pixel values
    image.putpalette(PALETTE.flatten().tolist())
    return image


@dataclass(frozen=True)
class Nodule:
    """One nodule of a semantic map; pixels, origin at the top left."""

    label: SemanticLabel
    centroid_yx: tuple[float, float]
    box_yxyx: tuple[int, int, int, int]  # half-open: rows box[0]:box[2], columns box[1]:box[3]
    area: int
    box_mask: np.ndarray = field(compare=False, repr=False)  # boolean, of the shape of the box: its own pixels there

    def mask(self, shape: tuple[int, int]) -> np.ndarray:
        """Its pixels in the whole map (H, W)."""
        whole = np.zeros(shape, dtype=bool)
        y0, x0, y1, x1 = self.box_yxyx
        whole[y0:y1, x0:x1] = self.box_mask
        return whole


def find_nodules(semantic_map) -> list[Nodule]:
    """The nodules of one map: connected components (8 neighbours) of equal label 5..7, in raster order of their first pixel.

    >>> import numpy as np
    >>> labels = np.full((64, 64), 4, dtype=np.uint8)
    >>> labels[10:14, 20:26] = 7
    >>> find_nodules(labels)[0].area
    24
    """
    from skimage.measure import label, regionprops

    labels = read_semantic_map(semantic_map)
    if labels.ndim != 2:
        raise ValueError(f"`semantic_map` has shape {labels.shape}, but `find_nodules` takes one map (H, W).")
    components = label(np.where(labels >= SemanticLabel.NODULE_BENIGN, labels, 0), background=0, connectivity=2)
    return [
        Nodule(
            SemanticLabel(int(labels[tuple(region.coords[0])])),
            tuple(float(c) for c in region.centroid),
            tuple(int(b) for b in region.bbox),
            int(region.area),
            region.image,
        )
        for region in regionprops(components)
    ]
