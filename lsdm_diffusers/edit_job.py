"""The work of `lsdm-edit`: edits of a series one after the other, and everything that is written of them.

All is written into a hidden folder beside the output folder, which takes its place at the end. A run that was killed
leaves the hidden folder, and the next one goes on from its finished edits.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .edit_report import write_report
from .edit_requests import CHANGE, INSERT, EditRequest
from .io.atomic_write import part_file, write_atomically
from .io.dicom.derived_series import stored_values, write_derived_series, write_segmentation
from .io.dicom.series import CtSeries
from .io.volume_files import save_nifti_volume
from .series_edits import (
    EditedSeries,
    change_nodule_3d,
    find_nodules_3d,
    insert_nodule_3d,
    numbered_nodules,
    plan_nodule,
    remove_nodule_3d,
)
from .version import __version__

ANNOTATION_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")  # as in LUNA16
AFFINE_TOLERANCE_MM = 0.1


def read_nodule_mask(path: str | Path, series: CtSeries) -> np.ndarray:
    """Read the numbers of nodules from a NIfTI file on the grid of a series, (Z, H, W), int32.

    Raises:
        ValueError: for a file that cannot be read, lies elsewhere, or has other values than whole numbers.
    """
    import nibabel

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`--nodule_mask` is {path}, but there is no such file.")
    try:
        image: Any = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asarray(image.dataobj)
    except Exception as error:  # a broken file can raise nearly anything
        raise ValueError(f"`--nodule_mask` is {path.name}, which is no NIfTI file, or a damaged one.") from error
    shape = series.hu.shape[::-1]
    if values.shape != shape:
        raise ValueError(f"`--nodule_mask` has shape {values.shape}, but the series {shape} (columns, rows, slices).")
    # canonical axes run to the right, front and head; those of the series to the left and back
    flipped = image.affine @ np.array(
        [[-1, 0, 0, shape[0] - 1], [0, -1, 0, shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float
    )
    off = np.abs((flipped - series.nifti_affine) @ np.array([*(size - 1 for size in shape), 1.0])).max()
    if off > AFFINE_TOLERANCE_MM or np.abs(flipped[:3, 3] - series.nifti_affine[:3, 3]).max() > AFFINE_TOLERANCE_MM:
        raise ValueError(f"`--nodule_mask` is {path.name}, but its affine does not lie on the pixels of the series.")
    try:
        return numbered_nodules(values[::-1, ::-1].transpose(2, 1, 0))
    except ValueError as error:
        raise ValueError(f"`--nodule_mask` is {path.name}, but {error}") from None


def job_digest(
    series: CtSeries, nodules: np.ndarray, requests: Sequence[EditRequest], options: dict[str, Any], checkpoint: str
) -> str:
    """What an edited series depends on, as a name."""
    described = {
        "files": [(file.sop_instance_uid, file.size) for file in series.files],
        "pixels": hashlib.sha256(series.hu.tobytes()).hexdigest(),
        "nodules": hashlib.sha256(nodules.tobytes()).hexdigest(),
        "requests": [request.as_dict() for request in requests],
        "options": options,
        "checkpoint": checkpoint,
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_requests(
    pipe: Any,
    series: CtSeries,
    nodules: np.ndarray,
    requests: Sequence[EditRequest],
    index_of: Callable[[EditRequest], tuple[float, float, float]],
    guidance_method: Any,
) -> None:
    """Find what is wrong with edits before the first is drawn: unknown numbers, and nodules without room.

    Raises:
        ValueError: which names the edit by its number.
    """
    expected = nodules.copy()
    for number, request in enumerate(requests, start=1):
        try:
            if request.action == INSERT:
                plan = _insertion(plan_nodule, pipe, series.hu, series, expected, request, index_of)(
                    guidance_method=guidance_method
                )
                part = expected[plan.first : plan.first + len(plan.mask)]
                part[plan.mask] = expected.max() + 1
            elif not (expected == request.nodule).any():
                known = ", ".join(map(str, sorted(set(np.unique(expected).tolist()) - {0}))) or "none"
                raise ValueError(f"nodule {request.nodule} is not in the mask; its numbers: {known}.")
            elif request.action != CHANGE:
                expected[expected == request.nodule] = 0
        except ValueError as error:
            raise ValueError(f"edit {number} ({request.words()}): {error}") from None


def _insertion(
    function: Callable[..., Any],
    pipe: Any,
    hu: np.ndarray,
    series: CtSeries,
    nodules: np.ndarray,
    request: EditRequest,
    index_of: Callable[[EditRequest], tuple[float, float, float]],
) -> Callable[..., Any]:
    """`plan_nodule` or `insert_nodule_3d` with the arguments that a request stands for."""

    def call(**more: Any) -> Any:
        return function(
            pipe,
            hu,
            index_of(request),
            request.diameter_mm,
            series.slice_spacing_mm,
            request.features or None,
            request.shape,
            series.pixel_spacing_mm,
            nodules > 0,
            request.seed,
            **more,
        )

    return call


def _draw(
    pipe: Any,
    hu: np.ndarray,
    series: CtSeries,
    nodules: np.ndarray,
    request: EditRequest,
    index_of: Callable[[EditRequest], tuple[float, float, float]],
    options: dict[str, Any],
) -> EditedSeries:
    if request.action == INSERT:
        edit: EditedSeries = _insertion(insert_nodule_3d, pipe, hu, series, nodules, request, index_of)(**options)
        return edit
    nodule = nodules == request.nodule
    sizes = (series.slice_spacing_mm, series.pixel_spacing_mm, request.seed)
    if request.action == CHANGE:
        return change_nodule_3d(pipe, hu, nodule, request.features, *sizes, **options)
    return remove_nodule_3d(pipe, hu, nodule, *sizes, **options)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(mask))


def run_edits(
    pipe: Any,
    series: CtSeries,
    nodules: np.ndarray,
    requests: Sequence[EditRequest],
    index_of: Callable[[EditRequest], tuple[float, float, float]],
    options: dict[str, Any],
    output_dir: Path,
    digest: str,
    parameters: dict[str, Any],
    report: Callable[[str], None] = print,
) -> None:
    """Draw the edits, or take finished ones of a run that was cut off, and write the output folder.

    Args:
        pipe: an `LSDMInpaintPipeline`.
        series: the source.
        nodules: their numbers, (Z, H, W); 0 elsewhere.
        requests: checked edits, in their order.
        index_of: slice, row and column of an inserted nodule.
        options: further arguments of the pipeline.
        output_dir: is made; must not exist, or be empty.
        digest: of the job.
        parameters: what `edits.json` says besides the edits.
        report: is told of each edit.
    """
    work = work_folder(output_dir, digest)
    work.mkdir(parents=True, exist_ok=True)
    hu, nodules, changed = series.hu.copy(), nodules.copy(), np.zeros(series.hu.shape, dtype=bool)
    entries, pictures = [], []
    for number, request in enumerate(requests, start=1):
        path = work / f"edit-{number:04d}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as saved:
                part = tuple(slice(*pair) for pair in saved["box"].tolist())
                new, mask, nodule = saved["hu"], saved["mask"], saved["nodule"]
            report(f"edit {number} of {len(requests)}: {request.words()} (drawn before)")
        else:
            report(f"edit {number} of {len(requests)}: {request.words()}")
            edit = _draw(pipe, hu, series, nodules, request, index_of, options)
            part = _box(edit.mask | edit.nodule)
            new, mask, nodule = edit.hu[part], edit.mask[part], edit.nodule[part]
            with part_file(path) as unfinished, open(unfinished, "wb") as file:
                box = [[side.start, side.stop] for side in part]
                np.savez_compressed(file, box=box, hu=new, mask=mask, nodule=nodule)
        before = hu[part].copy()
        hu[part] = new
        changed[part] |= mask
        assigned = request.nodule
        if request.action == INSERT:
            assigned = int(nodules.max()) + 1
            nodules[part][nodule] = assigned
        elif request.action != CHANGE:
            nodules[nodules == request.nodule] = 0
        entries.append(
            {
                **request.as_dict(),
                "nodule": assigned,
                "words": request.words(),
                "slices": [part[0].start, part[0].stop - 1],
                "pixels_changed": int((mask & (new != before)).sum()),
                "mean_hu_before": float(before[nodule].mean()),
                "mean_hu_after": float(new[nodule].mean()),
            }
        )
        pictures.append((f"{number}: nodule {assigned}, {request.words()}", part))
    _write_all(series, hu, nodules, changed, entries, pictures, work, digest, parameters, report)
    for path in work.glob("edit-*.npz"):
        path.unlink()
    if output_dir.exists():
        output_dir.rmdir()  # it is empty
    os.replace(work, output_dir)


def work_folder(output_dir: Path, digest: str) -> Path:
    """Where a job writes until it is done."""
    return output_dir.absolute().parent / f".{output_dir.name}.{digest}.part"


def _write_all(
    series: CtSeries,
    hu: np.ndarray,
    nodules: np.ndarray,
    changed: np.ndarray,
    entries: list[dict[str, Any]],
    pictures: list[tuple[str, tuple[slice, ...]]],
    folder: Path,
    digest: str,
    parameters: dict[str, Any],
    report: Callable[[str], None],
) -> None:
    import pydicom
    from tqdm.auto import tqdm

    description = (
        "Edited by lsdm_diffusers "
        + __version__
        + ": "
        + "; ".join(f"nodule {entry['nodule']} {entry['words']}" for entry in entries)
    )
    shutil.rmtree(folder / "dicom", ignore_errors=True)
    (folder / "dicom").mkdir()
    paths = write_derived_series(
        series,
        hu,
        changed,
        folder / "dicom",
        description,
        digest,
        lambda indices: tqdm(list(indices), desc="DICOM", unit="slice"),
    )
    names = {int(number): f"nodule {number}" for number in np.unique(nodules) if number}
    for entry in entries:
        if entry["nodule"] in names:
            names[entry["nodule"]] = f"nodule {entry['nodule']} {entry['words']}"
    if names:
        write_segmentation(paths, nodules, series, names, folder / "nodules.dcm")
    save_nifti_volume(nodules.astype(np.int16), folder / "nodules.nii.gz", series.nifti_affine)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    found = find_nodules_3d(nodules, series.pixel_spacing_mm, series.slice_spacing_mm)
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(ANNOTATION_COLUMNS)
    for nodule in found:
        z, y, x = series.place_of(nodule.centre)
        writer.writerow([headers[0].SeriesInstanceUID, *(f"{v:.3f}" for v in (x, y, z, nodule.diameter_mm))])
    write_atomically(folder / "annotations.csv", rows.getvalue().encode())
    undo = []
    for index in np.flatnonzero(changed.any((1, 2))).tolist():
        mask = series.orientation.turn_back(changed[index])
        box = _box(mask)
        undo.append(
            {
                "file": paths[index].name,
                "sop_instance_uid": str(headers[index].SOPInstanceUID),
                "source_sop_instance_uid": series.files[index].sop_instance_uid,
                "box_yxyx": [box[0].start, box[1].start, box[0].stop, box[1].stop],
                "stored_before": stored_values(series, index)[box].tolist(),
            }
        )
    write_atomically(folder / "undo.json", (json.dumps({"slices": undo}) + "\n").encode())
    write_report(folder / "report.html", series, hu, changed, pictures, entries)
    summary = {
        **parameters,
        "source_series_instance_uid": series.series_instance_uid,
        "series_instance_uid": str(headers[0].SeriesInstanceUID),
        "job": digest,
        "version": __version__,
        "edits": entries,
        "nodules": [
            {
                "nodule": nodule.number,
                "zyx_mm": [round(value, 3) for value in series.place_of(nodule.centre)],
                "diameter_mm": round(nodule.diameter_mm, 2),
                "slices": list(nodule.slices),
            }
            for nodule in found
        ],
    }
    write_atomically(folder / "edits.json", (json.dumps(summary, indent=1, default=str) + "\n").encode())
    report(f"{int(changed.any((1, 2)).sum())} of {len(hu)} slices changed")
