"""The DICOM files of a folder, and where the slices of each one belong."""

import os
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from tqdm.auto import tqdm

from .frames import check_frame_type, frame_count, frame_header
from .header import (
    MAX_EDGE,
    NOT_DICOM,
    DicomError,
    describe_error,
    number_or_none,
    numbers,
    open_header,
    pixel_spacing_of,
    rescale_of,
    slice_shape,
)
from .orientation import STANDARD, Orientation, orientation_of

HEADERS_PER_TASK = 256  # files that a worker reads before it answers


class SliceFile(NamedTuple):
    """Where a slice of a DICOM file belongs, as the header says."""

    path: str
    patient_id: str
    series_instance_uid: str
    sop_instance_uid: str
    z_mm: float | None  # None if the header has no position
    instance_number: int
    size: int  # bytes
    fault: str | None = None  # why the header says that the file gives no slice
    orientation: Orientation = STANDARD
    frame: int | None = None  # number of the frame, from 1; None for a file of one slice

    @property
    def key(self) -> tuple[str, float | None, int | None]:
        """A key that copies of a file share and other slices do not.

        An anonymiser may have emptied the identifiers or repeated one, so the position is part of the key.
        """
        return (self.sop_instance_uid or self.path, self.z_mm, self.frame)

    @property
    def rank(self) -> tuple[int, str, int]:
        """Of the slices at one place, the lowest rank is preferred."""
        return (self.instance_number, self.path, self.frame or 0)

    @property
    def name_suffix(self) -> str:
        """What tells the slice from the others of its file: "" or, for a frame, "-frame-12"."""
        return "" if self.frame is None else f"-frame-{self.frame}"


class FileFault(NamedTuple):
    """A file that could not be read."""

    path: str
    reason: str


def read_headers(path: str) -> list[SliceFile]:
    """Read where the slices of a file belong: one slice, or the frames of an enhanced CT in their order.

    If all frames have the same fault, one entry without `frame` says so.

    Raises:
        DicomError: for a file that cannot be read.
    """
    dataset = open_header(path).dataset
    try:
        size = os.path.getsize(path)
        if "PerFrameFunctionalGroupsSequence" not in dataset:
            return [_slice_file(path, size, dataset, None)]
        entries = [_slice_file(path, size, dataset, frame) for frame in range(1, frame_count(dataset) + 1)]
    except DicomError:
        raise
    except Exception as error:
        raise DicomError(f"unreadable ({describe_error(error)})") from error
    faults = {entry.fault for entry in entries}
    return entries if None in faults or len(faults) > 1 else [entries[0]._replace(frame=None)]


def _slice_file(path: str, size: int, dataset: pydicom.Dataset, frame: int | None) -> SliceFile:
    header, fault, orientation = dataset, None, STANDARD
    try:
        header = frame_header(dataset, frame or 1)
        slice_shape(header, MAX_EDGE**2)
        check_frame_type(header)
        pixel_spacing_of(header)
        orientation = orientation_of(header)
        rescale_of(header)
    except DicomError as error:
        fault = str(error)
    try:
        (*_, z_mm) = numbers(header, "ImagePositionPatient", 3)
    except DicomError:
        z_mm = float("nan")
    return SliceFile(
        path,
        str(dataset.get("PatientID", "")),
        str(dataset.get("SeriesInstanceUID", "")),
        str(dataset.get("SOPInstanceUID", "")),
        z_mm if np.isfinite(z_mm) else None,
        int(number_or_none(dataset, "InstanceNumber") or 0),
        size,
        fault,
        orientation,
        frame,
    )


def _read_all_headers(paths: list[str]) -> list[SliceFile | FileFault]:
    entries: list[SliceFile | FileFault] = []
    for path in paths:
        try:
            entries += read_headers(path)
        except DicomError as error:
            entries.append(FileFault(path, str(error)))
    return entries


def find_files(folder: Path) -> tuple[list[str], list[FileFault]]:
    """Find every file below a folder, each once. Links to files and folders are followed.

    Returns:
        Paths below `folder`, and the folders and links that cannot be read. Of a file and links to it the path of the
        file itself is given.
    """
    faults: list[FileFault] = []

    def note_fault(error: OSError) -> None:
        faults.append(FileFault(error.filename, f"unreadable ({describe_error(error)})"))

    names_found: list[str] = []
    folders, seen = [str(folder)], set()
    while folders:
        linked_folders = []
        for root, children, names in os.walk(folders.pop(0), onerror=note_fault):
            real_root = os.path.realpath(root)
            if real_root in seen:
                children.clear()
                continue
            seen.add(real_root)
            children.sort()
            linked_folders += [path for name in children if os.path.islink(path := os.path.join(root, name))]
            names_found += [os.path.join(root, name) for name in names]
        folders += linked_folders

    by_target: dict[str, str] = {}
    for path in sorted(names_found, key=lambda path: (os.path.islink(path), path)):
        if os.path.isfile(path):
            by_target.setdefault(os.path.realpath(path), path)
        elif os.path.islink(path) and not os.path.exists(path):
            faults.append(FileFault(path, "link to a file that is absent"))
    return sorted(by_target.values()), faults


def index_dicom(folder: Path, executor: Executor | None = None) -> tuple[dict[str, list[SliceFile]], list[FileFault]]:
    """Read the header of every DICOM file of a folder and its sub-folders.

    Files without the suffix .dcm that are not DICOM (licences, annotations) are passed over. Links are followed.

    Args:
        folder: where to look.
        executor: reads in parallel if given.

    Returns:
        Slices by SeriesInstanceUID, in the order of their paths and frames, and the files that could not be read.
    """
    paths, faults = find_files(folder)
    chunks = [paths[start : start + HEADERS_PER_TASK] for start in range(0, len(paths), HEADERS_PER_TASK)]
    results: Iterable[list[SliceFile | FileFault]]
    results = executor.map(_read_all_headers, chunks) if executor else map(_read_all_headers, chunks)
    series: dict[str, list[SliceFile]] = {}
    with tqdm(total=len(paths), desc="DICOM headers", unit="file", mininterval=1) as progress:
        for chunk, entries in zip(chunks, results, strict=True):
            for entry in entries:
                if isinstance(entry, SliceFile):
                    series.setdefault(entry.series_instance_uid, []).append(entry)
                elif entry.path.lower().endswith(".dcm") or entry.reason != NOT_DICOM:
                    faults.append(entry)
            progress.update(len(chunk))
    return series, faults
