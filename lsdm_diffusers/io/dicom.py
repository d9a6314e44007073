"""Axial CT slices from DICOM files: an index of the files of a folder, and one slice in Hounsfield units (HU).

The files may be broken, of another kind, or made to do harm. Each file that gives no slice is refused with a reason.
"""

import io
import os
import re
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pydicom
from pydicom.encaps import get_frame
from pydicom.misc import is_dicom
from pydicom.uid import DeflatedExplicitVRLittleEndian
from tqdm.auto import tqdm

from ..ct_limits import MAX_STORED_HU, PIXEL_SPACING_MM
from ..hounsfield import HU_MIN

MAX_FILE_BYTES = 64 * 2**20  # a slice of 512x512 pixels has half a MiB; more is a volume in one file, or an attack
MIN_EDGE, MAX_EDGE = 16, 2048  # pixels
MAX_COMPRESSED_RATIO = 4  # compressed pixel data may have this many times the bytes of the plain pixels, and ...
MAX_COMPRESSED_BYTES = 2**20  # ... this many more
BYTES_PER_PIXEL = 2
MIN_AXIAL_COSINE = 0.9  # of the angle between an axis of the image and one of the patient; allows 25 degrees of tilt
HEADER_TAGS = ["SOPInstanceUID", "SeriesInstanceUID", "PatientID", "ImagePositionPatient", "InstanceNumber"]
HEADERS_PER_TASK = 256  # files that a worker reads before it answers
NOT_DICOM = "not a DICOM file"


class SliceFile(NamedTuple):
    """Where the slice of a DICOM file belongs, as its header says."""

    path: str
    patient_id: str
    series_instance_uid: str
    sop_instance_uid: str
    z_mm: float | None  # None if the header has no position
    instance_number: int
    size: int  # bytes

    @property
    def key(self) -> tuple[str, float | None]:
        """A key that copies of a file share and other slices do not.

        An anonymiser may have emptied the identifiers or repeated one, so the position is part of the key.
        """
        return (self.sop_instance_uid or self.path, self.z_mm)


class FileFault(NamedTuple):
    """A file that could not be read."""

    path: str
    reason: str


class CtSlice(NamedTuple):
    """One axial slice."""

    hu: np.ndarray  # (H, W) int16; padding outside the scan circle is -1024
    pixel_spacing_mm: float
    slice_thickness_mm: float | None
    contrast_used: bool
    patient_id: str
    sop_instance_uid: str


class DicomError(ValueError):
    """A file that gives no axial CT slice; the message is the reason."""


def describe_error(error: BaseException) -> str:
    """Describe an unexpected error in one line without absolute paths and memory addresses.

    Such lines are published in `skipped.csv`, and the same error gives the same line in each run.
    """
    if isinstance(error, OSError):
        text = error.strerror or ""
    else:
        text = re.sub(r"""<[^<>]*>|['"]?(/[^\s'"]+)+['"]?""", "...", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def _open(path: str, **options: Any) -> pydicom.Dataset:
    """`pydicom.dcmread` of a file that is small, not deflated, and DICOM; whatever it raises becomes a DicomError."""
    try:
        if not is_dicom(path):
            raise DicomError(NOT_DICOM)
        size = os.path.getsize(path)
        if size > MAX_FILE_BYTES:
            raise DicomError(f"file of {size} bytes, more than a slice has ({MAX_FILE_BYTES})")
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:  # nothing says how large it is before it is unpacked
            raise DicomError("deflated transfer syntax")
        return pydicom.dcmread(path, **options)
    except DicomError:
        raise
    except Exception as error:  # a broken file can raise nearly anything inside the parser
        raise DicomError(f"unreadable ({describe_error(error)})") from error


def _read_header(path: str) -> SliceFile | FileFault:
    try:
        header = _open(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        position = [float(value) for value in header.get("ImagePositionPatient") or ()]
        return SliceFile(
            path,
            str(header.get("PatientID", "")),
            str(header.get("SeriesInstanceUID", "")),
            str(header.get("SOPInstanceUID", "")),
            position[2] if len(position) == 3 and np.isfinite(position[2]) else None,
            int(header.get("InstanceNumber") or 0),
            os.path.getsize(path),
        )
    except DicomError as error:
        return FileFault(path, str(error))
    except Exception as error:
        return FileFault(path, f"unreadable ({describe_error(error)})")


def _read_headers(paths: list[str]) -> list[SliceFile | FileFault]:
    return [_read_header(path) for path in paths]


def index_dicom(folder: Path, executor: Executor | None = None) -> tuple[dict[str, list[SliceFile]], list[FileFault]]:
    """Read the header of every DICOM file of a folder and its sub-folders.

    Files without the suffix .dcm that are not DICOM (licences, annotations) are passed over. Links are not followed.

    Args:
        folder: where to look.
        executor: reads in parallel if given.

    Returns:
        Files by SeriesInstanceUID, in the order of their paths, and the files that could not be read.
    """
    faults: list[FileFault] = []

    def note_fault(error: OSError) -> None:
        faults.append(FileFault(error.filename, f"unreadable ({describe_error(error)})"))

    paths = sorted(
        os.path.join(root, name) for root, _, names in os.walk(folder, onerror=note_fault) for name in names
    )
    paths = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    chunks = [paths[start : start + HEADERS_PER_TASK] for start in range(0, len(paths), HEADERS_PER_TASK)]
    results: Iterable[list[SliceFile | FileFault]]
    results = executor.map(_read_headers, chunks) if executor else map(_read_headers, chunks)
    series: dict[str, list[SliceFile]] = {}
    with tqdm(total=len(paths), desc="DICOM headers", unit="file", mininterval=1) as progress:
        for chunk in results:
            for entry in chunk:
                if isinstance(entry, SliceFile):
                    series.setdefault(entry.series_instance_uid, []).append(entry)
                elif entry.path.lower().endswith(".dcm") or entry.reason != NOT_DICOM:
                    faults.append(entry)
            progress.update(len(chunk))
    return series, faults


def read_slice(path: str, max_pixels: int = MAX_EDGE**2, whole_hu: bool = True) -> CtSlice:
    """Read one axial CT slice in Hounsfield units.

    Rescale slope and intercept are applied. Pixels of the padding value become -1024 if they are above 3071 HU, and so
    do all values below -1024.

    Args:
        path: of the DICOM file.
        max_pixels: a slice of more pixels is refused before its pixels are decoded.
        whole_hu: round to whole HU. False keeps the fractions of a slope that is not whole, and gives float32.

    Raises:
        DicomError: with the reason, if the file is unreadable, not CT, not axial, has several frames, no rescale, or
            pixels that are not square or cannot be decoded.
    """
    dataset = _open(path)
    try:
        shape = _slice_shape(dataset, max_pixels)
        pixel_spacing = _pixel_spacing(dataset)
        _check_orientation(dataset)
        hu = _hounsfield_units(dataset, shape)
        hu = np.rint(hu).astype(np.int16) if whole_hu else hu.astype(np.float32)
        thickness = dataset.get("SliceThickness")
        if thickness is not None and not float(thickness) > 0:
            raise DicomError(f"slice thickness {thickness} mm")
        return CtSlice(
            hu,
            pixel_spacing,
            None if thickness is None else float(thickness),
            bool(str(dataset.get("ContrastBolusAgent") or "").strip()),
            str(dataset.get("PatientID", "")),
            str(dataset.get("SOPInstanceUID", "")),
        )
    except DicomError:
        raise
    except Exception as error:
        raise DicomError(f"unreadable ({describe_error(error)})") from error


def _slice_shape(dataset: pydicom.Dataset, max_pixels: int) -> tuple[int, int]:
    """Height and width of the slice, if the file holds one CT slice of a possible size."""
    modality = str(dataset.get("Modality", ""))
    if modality != "CT":
        raise DicomError(f"modality {modality!r} instead of CT")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DicomError(f"{frames} frames in one file instead of one slice")
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise DicomError(f"{dataset.SamplesPerPixel} samples a pixel instead of one")
    height, width = int(dataset.Rows), int(dataset.Columns)
    if min(height, width) < MIN_EDGE or max(height, width) > MAX_EDGE:
        raise DicomError(f"{height}x{width} pixels, but {MIN_EDGE}..{MAX_EDGE} a side are read")
    if height * width > max_pixels:
        raise DicomError(f"{height}x{width} pixels, but at most {max_pixels} in all are read")
    return height, width


def _pixel_spacing(dataset: pydicom.Dataset) -> float:
    """Edge of a pixel in mm, if pixels are square."""
    low, high = PIXEL_SPACING_MM
    row_spacing, column_spacing = (float(value) for value in dataset.PixelSpacing)
    square = abs(row_spacing - column_spacing) < 0.01 * row_spacing
    if not (square and low <= row_spacing <= high):
        raise DicomError(
            f"pixel spacing {row_spacing:g} x {column_spacing:g} mm, "
            f"but square pixels of {low:g}..{high:g} mm are needed"
        )
    return row_spacing


def _check_orientation(dataset: pydicom.Dataset) -> None:
    """Refuse other planes than the axial one, seen from the feet.

    Supine and prone patients pass: rows run along x and columns along y, both in the positive or both in the negative
    direction.
    """
    orientation = [float(value) for value in dataset.ImageOrientationPatient]
    if len(orientation) == 6:
        along_x = abs(orientation[0]) > MIN_AXIAL_COSINE
        seen_from_feet = np.cross(orientation[:3], orientation[3:])[2] > MIN_AXIAL_COSINE
        if along_x and seen_from_feet:
            return
    raise DicomError(f"orientation {orientation} is not that of an axial slice seen from the feet")


def _rescale(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Slope and intercept that turn stored values into HU."""
    if dataset.get("RescaleSlope") is None or dataset.get("RescaleIntercept") is None:
        raise DicomError("no rescale slope and intercept")
    if str(dataset.get("RescaleType") or "HU").strip().upper() not in ("HU", "US", "HU_MOD"):
        raise DicomError(f"rescale type {str(dataset.RescaleType)[:16]!r} instead of HU")
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    if not (np.isfinite([slope, intercept]).all() and slope > 0):
        raise DicomError(f"rescale slope {slope:g} and intercept {intercept:g} make no Hounsfield units")
    return slope, intercept


def _encoded_shape(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    """Height and width that a JPEG or JPEG 2000 stream states; None for other streams.

    A stream of a few hundred bytes can state a size of gigabytes, so it is compared with the header before decoding.
    """
    try:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        with PIL.Image.open(io.BytesIO(frame), formats=["JPEG", "JPEG2000"]) as image:
            return image.height, image.width
    except PIL.UnidentifiedImageError:
        return None


def _check_compressed_size(dataset: pydicom.Dataset, shape: tuple[int, int]) -> None:
    encoded_bytes = len(dataset.get("PixelData") or b"")
    plain_bytes = BYTES_PER_PIXEL * shape[0] * shape[1]
    if encoded_bytes > MAX_COMPRESSED_RATIO * plain_bytes + MAX_COMPRESSED_BYTES:
        raise DicomError(
            f"{encoded_bytes} bytes of compressed pixel data, more than {shape[0]}x{shape[1]} pixels need"
        )
    encoded_shape = _encoded_shape(dataset)
    if encoded_shape not in (None, shape):
        raise DicomError(f"compressed pixel data of shape {encoded_shape} instead of {shape}")


def _hounsfield_units(dataset: pydicom.Dataset, shape: tuple[int, int]) -> np.ndarray:
    """Decode the pixels and rescale them to HU in the range of int16, (H, W)."""
    slope, intercept = _rescale(dataset)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        _check_compressed_size(dataset, shape)
    stored = dataset.pixel_array
    if stored.shape != shape:
        raise DicomError(f"pixel data of shape {stored.shape} instead of {shape}")
    hu: np.ndarray
    if slope == 1 and intercept == int(intercept):  # as in nearly every scan; integers are faster
        hu = stored.astype(np.int32) + int(intercept)
    else:
        hu = stored * slope + intercept
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        low, high = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
        hu[(stored >= low) & (stored <= high) & (hu > MAX_STORED_HU)] = HU_MIN
    possible = (hu > HU_MIN) & (hu <= MAX_STORED_HU)
    if not (np.isfinite(hu).all() and possible.any()):
        raise DicomError(f"values {hu.min():g}..{hu.max():g} are no Hounsfield units")
    return np.clip(hu, HU_MIN, np.iinfo(np.int16).max)
