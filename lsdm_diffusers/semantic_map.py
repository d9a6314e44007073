"""Semantic maps of axial chest CT: reading, checking, saving as an image, and finding the nodules of a map.

Labels are defined in `labels`, and maps are made from HU in `segmentation`. What users need of both can be imported
from here, too.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from .labels import (
    LABEL_NAMES,
    NUM_LABELS,
    PALETTE,
    SemanticLabel,
    check_label_array,
    check_label_tensor,
    max_pool_one_hot,
)
from .map_file import check_not_one_hot, read_map_file
from .map_image import labels_from_image
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


def read_semantic_map(source: PIL.Image.Image | np.ndarray | torch.Tensor | str | Path) -> NDArray[np.uint8]:
    """Read one semantic map, or a stack of them, and check its labels.

    Args:
        source: a PIL image, an integer array or tensor of shape (H, W) or (B, H, W), or the path of a file: PNG, .npy,
            or NIfTI (.nii, .nii.gz) of one axial slice. A grey image has the label as pixel value, a colour image has
            the colours of `PALETTE`; `map_image.labels_from_image` says how a palette image is read.

    Returns:
        Labels 0..7, of the shape of `source`; always a copy.

    Raises:
        ValueError: for a JPEG, a one-hot map, another type, image mode, dtype or number of dimensions, colours that
            are not of the legend, or a value outside 0..7, which is named.

    >>> read_semantic_map(np.array([[0, 4], [4, 7]]))
    array([[0, 4],
           [4, 7]], dtype=uint8)
    """
    if isinstance(source, (str, Path)):
        labels = read_map_file(source)
    elif isinstance(source, PIL.Image.Image):
        labels = labels_from_image(source)
    elif isinstance(source, torch.Tensor):
        tensor = source.detach().cpu()
        # NumPy has no bfloat16; as float32 the map is refused by its dtype like other floating-point maps.
        labels = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    elif isinstance(source, np.ndarray):
        labels = source
    else:
        raise ValueError(
            f"`semantic_map` is a {type(source).__name__}, but a PIL image, an array, a tensor or the path of a PNG "
            "is needed."
        )
    check_not_one_hot(labels)
    if labels.ndim not in (2, 3) or 0 in labels.shape:
        raise ValueError(f"`semantic_map` has shape {tuple(labels.shape)}, but (H, W) or (B, H, W) is needed.")
    check_label_array(labels)
    return labels.astype(np.uint8)


def semantic_map_image(semantic_map: np.ndarray) -> PIL.Image.Image:
    """Show a map as a palette image: a viewer shows colours, and each pixel value stays the label.

    Args:
        semantic_map: integer labels 0..7, (H, W).

    Returns:
        Image of mode "P".

    Raises:
        ValueError: for more than one map, or what `read_semantic_map` refuses.
    """
    labels = read_semantic_map(semantic_map)
    if labels.ndim != 2:
        raise ValueError(f"`semantic_map` has shape {labels.shape}, but one map (H, W) is needed for an image.")
    image = PIL.Image.fromarray(labels).convert("P")  # "L" to "P" keeps the pixel values
    image.putpalette(PALETTE.flatten().tolist())
    return image


@dataclass(frozen=True)
class Nodule:
    """One nodule of a semantic map.

    Args:
        label: one of the three nodule labels.
        centroid_yx: mean row and column of its pixels.
        box_yxyx: rows `box_yxyx[0]` up to `box_yxyx[2]` and columns `box_yxyx[1]` up to `box_yxyx[3]`, half-open.
        area: number of its pixels.
        box_mask: which pixels of the box belong to it, boolean, of the shape of the box.
    """

    label: SemanticLabel
    centroid_yx: tuple[float, float]
    box_yxyx: tuple[int, int, int, int]
    area: int
    box_mask: NDArray[np.bool_] = field(compare=False, repr=False)

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], label: SemanticLabel) -> "Nodule":
        """The nodule of a mask (H, W) that is not empty."""
        rows, columns = np.nonzero(mask)
        y0, x0, y1, x1 = int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1
        centroid = (float(rows.mean()), float(columns.mean()))
        return cls(label, centroid, (y0, x0, y1, x1), len(rows), mask[y0:y1, x0:x1])

    def mask(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """The boolean mask of its pixels in a map of that shape (H, W)."""
        mask = np.zeros(shape, dtype=bool)
        y0, x0, y1, x1 = self.box_yxyx
        mask[y0:y1, x0:x1] = self.box_mask
        return mask


def find_nodules(semantic_map: PIL.Image.Image | np.ndarray | torch.Tensor | str | Path) -> list[Nodule]:
    """The nodules of one map: connected components (8 neighbours) of equal label 5..7, in raster order.

    Args:
        semantic_map: one map (H, W), in any form that `read_semantic_map` takes.

    Returns:
        The nodules in the order in which their first pixels come, row by row.

    Raises:
        ValueError: for a stack of maps, or what `read_semantic_map` refuses.

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
    nodules = []
    for region in regionprops(components):
        centre_y, centre_x = region.centroid
        y0, x0, y1, x1 = region.bbox
        nodules.append(
            Nodule(
                label=SemanticLabel(int(labels[tuple(region.coords[0])])),
                centroid_yx=(float(centre_y), float(centre_x)),
                box_yxyx=(int(y0), int(x0), int(y1), int(x1)),
                area=int(region.area),
                box_mask=region.image,
            )
        )
    return nodules
