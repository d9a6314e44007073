"""Any folder of axial CT in DICOM to rows of the dataset, with computed semantic maps or the user's own."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from ..io.dicom import DicomError, SliceFile, describe_error, read_slice
from ..nodule_features import NODULE_FEATURES
from ..segmentation import semantic_map_from_hu
from ..semantic_map import find_nodules, read_semantic_map
from .dataset import encode_row
from .file_choice import OmittedFile, choose_files
from .scan import ScanJob, StageClock, scan_signature
from .selection import choose_slices, split_of_patient

Z_DECIMALS = 1  # slices whose z agrees to 0.1 mm lie at the same place
MAP_SUFFIXES = (".png", ".npy", ".nii.gz", ".nii", ".jpg", ".jpeg")  # a JPEG is found so that its refusal names it
MAX_UID_LENGTH = 64  # DICOM PS3.5, section 9.1


def group_series(
    files: Iterable[SliceFile],
) -> tuple[dict[tuple[str, str], list[SliceFile]], list[OmittedFile]]:
    """Group files by patient and series.

    The series alone is not enough: an anonymiser may have given two patients the same SeriesInstanceUID.

    Returns:
        Files by (PatientID, SeriesInstanceUID), in ascending order, and the files without a series.
    """
    groups: dict[tuple[str, str], list[SliceFile]] = {}
    left_out = []
    for file in files:
        if file.series_instance_uid:
            groups.setdefault((file.patient_id, file.series_instance_uid), []).append(file)
        else:
            left_out.append(OmittedFile(file, "no SeriesInstanceUID"))
    return dict(sorted(groups.items())), left_out


def order_by_z(
    files: Iterable[SliceFile], executor: Executor | None = None
) -> tuple[list[SliceFile], list[OmittedFile]]:
    """Order the files of a series by z, with one file at each place.

    Files that give no axial CT slice by their header take no place. Of the others at a place, the readable one of the
    lowest instance number is taken.

    Args:
        files: of the series.
        executor: reads files in parallel that lie at the same place, if given.

    Returns:
        The files in the order of z, and the files left out. Whole copies of a file that is taken are in neither.
    """
    by_z: dict[float, list[SliceFile]] = {}
    left_out = []
    for file in sorted(files, key=lambda file: file.rank):
        if file.fault is not None:
            left_out.append(OmittedFile(file, file.fault))
        elif file.z_mm is None:
            left_out.append(OmittedFile(file, "no position of the slice (ImagePositionPatient)"))
        else:
            by_z.setdefault(round(file.z_mm, Z_DECIMALS), []).append(file)
    chosen, unreadable = choose_files(by_z, executor)
    left_out += unreadable
    named = {omission.file for omission in left_out}
    for z, candidates in by_z.items():
        taken = chosen[z]
        for file in candidates:
            if file.key == taken.key or file in named:
                continue
            lower = ", of a lower instance number," if taken.instance_number < file.instance_number else ""
            reason = f"another slice of the series{lower} lies at z = {file.z_mm:g} mm"
            left_out.append(OmittedFile(file, reason))
    return [chosen[z] for z in sorted(chosen)], left_out


def series_job(
    files: list[SliceFile],
    dicom_dir: Path,
    semantic_map_dir: Path | None,
    slice_fraction: float,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    executor: Executor | None = None,
) -> tuple[ScanJob, list[OmittedFile]]:
    """Make the job of a series.

    Args:
        files: of the series, all of one patient.
        dicom_dir: folder of the DICOM files.
        semantic_map_dir: folder of the user's own maps, see `find_map_file`; None computes the maps.
        slice_fraction: share of the slices, spread evenly, above 0 and up to 1.
        validation_fraction: share of the patients, see `split_of_patient`.
        test_fraction: share of the patients.
        seed: of the split.
        executor: reads files in parallel that lie at the same place, if given.

    Returns:
        The job, and the files left out.

    Raises:
        ValueError: for a share outside its range.
    """
    patient_id, series_instance_uid = files[0].patient_id, files[0].series_instance_uid
    ordered, left_out = order_by_z(files, executor)
    chosen = {}
    if ordered:
        chosen = {index: ordered[index] for index in choose_slices(len(ordered), (), slice_fraction)}
    map_contents = []
    if semantic_map_dir is not None:
        map_files = [find_map_file(semantic_map_dir, file, dicom_dir) for file in chosen.values()]
        map_contents = [path.read_bytes() for path in map_files if path is not None]
    # identifiers of foreign files are no file names
    identity = f"{patient_id} {series_instance_uid}".encode("utf-8", "backslashreplace")
    job = ScanJob(
        name=hashlib.sha256(identity).hexdigest()[:16],
        scan=series_instance_uid,
        patient_id=patient_id,
        split=split_of_patient(patient_id, validation_fraction, test_fraction, seed),
        columns={"patient_id": patient_id, "pylidc_scan_id": None, "series_instance_uid": series_instance_uid},
        files=chosen,
        left_out=(),
        signature=scan_signature(files, *map_contents),
    )
    return job, left_out


def find_map_file(semantic_map_dir: Path, file: SliceFile, dicom_dir: Path) -> Path | None:
    """Find the user's map of a slice: `a/b.png` for the DICOM file `a/b.dcm`, or `<SOPInstanceUID>.png`.

    That of frame 12 of an enhanced CT is `a/b-frame-12.png` or `<SOPInstanceUID>-frame-12.png`. Other suffixes of
    `MAP_SUFFIXES` count where there is no PNG.

    Args:
        semantic_map_dir: folder of the maps.
        file: of the slice.
        dicom_dir: folder of the DICOM files.

    Returns:
        Path of the map, or None if there is no such file.
    """
    relative = Path(file.path).relative_to(dicom_dir)
    # only .dcm is cut off: what follows the last dot of an identifier is no suffix
    stem = relative.name[:-4] if relative.suffix.lower() == ".dcm" else relative.name
    candidates = [semantic_map_dir / relative.parent / stem]
    uid = file.sop_instance_uid
    if uid.replace(".", "").isalnum() and len(uid) <= MAX_UID_LENGTH:
        candidates.append(semantic_map_dir / uid)
    paths = [path.with_name(path.name + file.name_suffix + suffix) for suffix in MAP_SUFFIXES for path in candidates]
    return next((path for path in paths if path.is_file()), None)


def read_own_map(path: Path | None, shape: tuple[int, ...]) -> np.ndarray:
    """Read the user's map of a slice.

    Args:
        path: of the map, or None if there is none.
        shape: height and width of the slice.

    Raises:
        DicomError: for a file that is absent, not a semantic map, or of another size.
    """
    if path is None:
        raise DicomError("no semantic map in --semantic_map_dir")
    try:
        semantic_map = read_semantic_map(path)
    except ValueError as error:
        raise DicomError(f"semantic map {path.name}: {error}") from error
    except Exception as error:  # a broken PNG can raise nearly anything
        raise DicomError(f"semantic map {path.name}: {describe_error(error)}") from error
    if semantic_map.shape != shape:
        size = "x".join(map(str, semantic_map.shape))
        raise DicomError(f"semantic map {path.name} has {size} pixels, the slice {shape[0]}x{shape[1]}")
    return semantic_map


def unrated_nodules(semantic_map: np.ndarray, slice_name: str, pixel_spacing: float) -> list[dict[str, Any]]:
    """The entries of column `nodules` for the nodules of a map, without readers and ratings.

    Args:
        semantic_map: labels 0..7, (H, W).
        slice_name: begins the identifiers: the SOPInstanceUID, and of a frame its number.
        pixel_spacing: edge of a pixel in mm.

    Returns:
        One entry for each nodule; its diameter is that of a disc of its area.
    """
    entries = []
    for number, nodule in enumerate(find_nodules(semantic_map)):
        entries.append(
            {
                "nodule_id": f"{slice_name}-{number}",
                "annotation_ids": [],
                "centroid_yx": list(nodule.centroid_yx),
                "box_yxyx": list(nodule.box_yxyx),
                "diameter_mm": 2 * (nodule.area / np.pi) ** 0.5 * pixel_spacing,
                "num_readers": None,
                **dict.fromkeys(NODULE_FEATURES),
                **{f"{name}_ratings": [] for name in NODULE_FEATURES},
            }
        )
    return entries


def ct_row(
    job: ScanJob,
    index: int,
    clock: StageClock,
    dicom_dir: Path,
    semantic_map_dir: Path | None,
    max_slice_thickness: float | None,
    bit_depth: int,
) -> dict[str, Any]:
    """Make the row of one slice.

    Args:
        job: of the series.
        index: of the slice.
        clock: takes the time of each stage.
        dicom_dir: folder of the DICOM files.
        semantic_map_dir: folder of the user's own maps, drawn on the pixels as the files store them; they are turned
            with the slice. None computes the maps.
        max_slice_thickness: in mm; thicker slices, and those of unknown thickness, are left out. None takes all.
        bit_depth: of the image, 16 or 8.

    Raises:
        DicomError: for a slice that is left out.
    """
    file = job.files[index]
    with clock("read"):
        ct = read_slice(file.path, frame=file.frame)
    if max_slice_thickness is not None:
        thickness = ct.slice_thickness_mm
        if thickness is None or thickness > max_slice_thickness:
            seen = "unknown" if thickness is None else f"{thickness:g} mm"
            raise DicomError(f"slice thickness {seen}, but --max_slice_thickness is {max_slice_thickness:g} mm")
    with clock("semantic map"):
        if semantic_map_dir is None:
            semantic_map = semantic_map_from_hu(ct.hu.astype(np.float32), ct.pixel_spacing_mm)
        else:
            stored_shape = ct.orientation.stored_shape(ct.hu.shape)
            own_map = read_own_map(find_map_file(semantic_map_dir, file, dicom_dir), stored_shape)
            semantic_map = ct.orientation.turn(own_map)
        nodules = unrated_nodules(semantic_map, file.sop_instance_uid + file.name_suffix, ct.pixel_spacing_mm)
    with clock("encode"):
        return encode_row(
            ct.hu,
            semantic_map,
            bit_depth,
            sop_instance_uid=file.sop_instance_uid,
            slice_index=index,
            slice_z_mm=file.z_mm,
            pixel_spacing_mm=ct.pixel_spacing_mm,
            slice_thickness_mm=ct.slice_thickness_mm,
            contrast_used=ct.contrast_used,
            nodules=nodules,
            **job.columns,
        )
