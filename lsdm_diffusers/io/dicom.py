"""Axial CT slices from DICOM files that may be broken, foreign or hostile: an index of the files, and each slice in Hounsfield units."""

import io
import os
import re
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pydicom
from pydicom.encaps import get_frame
from pydicom.misc import is_dicom
from pydicom.uid import DeflatedExplicitVRLittleEndian
from tqdm.auto import tqdm

MAX_FILE_BYTES = 64 * 2**20  # a 512x512 slice has half a MiB; more is a volume in one file, or an attack
MAX_EDGE = 2048  # pixels
HEADER_TAGS = ["SOPInstanceUID", "SeriesInstanceUID", "PatientID", "ImagePositionPatient", "InstanceNumber"]


class SliceFile(NamedTuple):
    """What the header of a DICOM file says of where its slice belongs."""

    path: str
    patient_id: str
    series_instance_uid: str
    sop_instance_uid: str
    z_mm: float | None  # None where the header does not say
    instance_number: int
    size: int  # bytes

    @property
    def key(self) -> tuple:
        """The same for copies of a file, another for other slices; an anonymiser may have emptied or repeated the identifiers."""
        return (self.sop_instance_uid or self.path, self.z_mm)


class CtSlice(NamedTuple):
    """One axial slice."""

    hu: np.ndarray  # (H, W) int16, Hounsfield units as stored, padding outside the scan circle -1024
    pixel_spacing_mm: float
    slice_thickness_mm: float | None
    contrast_used: bool


class DicomError(ValueError):
    """A file that gives no axial CT slice; the message is the reason."""


def reason_of(error: Exception) -> str:
    """What is told of an unexpected error, in a line without absolute paths and addresses: reasons are published, and the same each time."""
    told = (
        error.strerror or ""
        if isinstance(error, OSError)
        else re.sub(r"""<[^<>]*>|['"]?(/[^\s'"]+)+['"]?""", "...", str(error))
    )
    return f"{type(error).__name__}: {' '.join(told.split())[:200]}"


def _open(path: str, **options) -> pydicom.Dataset:
    """`pydicom.dcmread` of a file that is small, plain and DICOM; anything it may raise becomes a DicomError."""
    try:
        if not is_dicom(path):
            raise DicomError("not a DICOM file")
        size = os.path.getsize(path)
        if size > MAX_FILE_BYTES:
            raise DicomError(f"file of {size} bytes, more than a slice has ({MAX_FILE_BYTES})")
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:  # its size after unpacking is unknown before
            raise DicomError("deflated transfer syntax")
        return pydicom.dcmread(path, **options)
    except DicomError:
        raise
    except Exception as error:  # a broken file can raise nearly anything inside the parser
        raise DicomError(f"unreadable ({reason_of(error)})") from error


def _encoded_shape(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    """The size that a JPEG or JPEG 2000 stream itself tells, unpacked; a few hundred bytes can tell gigabytes. None for other streams."""
    try:
        with PIL.Image.open(
            io.BytesIO(get_frame(dataset.PixelData, 0, number_of_frames=1)), formats=["JPEG", "JPEG2000"]
        ) as image:
            return image.size[::-1]
    except PIL.UnidentifiedImageError:
        return None


def _headers(paths: list[str]) -> list[SliceFile | tuple[str, str]]:
    """For each file its SliceFile, or (path, reason)."""
    found = []
    for path in paths:
        try:
            header = _open(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
            position = [float(value) for value in header.get("ImagePositionPatient") or ()]
            found.append(
                SliceFile(
                    path,
                    str(header.get("PatientID", "")),
                    str(header.get("SeriesInstanceUID", "")),
                    str(header.get("SOPInstanceUID", "")),
                    position[2] if len(position) == 3 and np.isfinite(position[2]) else None,
                    int(header.get("InstanceNumber") or 0),
                    os.path.getsize(path),
                )
            )
        except DicomError as error:
            found.append((path, str(error)))
        except Exception as error:
            found.append((path, f"unreadable ({reason_of(error)})"))
    return found


def index_dicom(
    folder: Path, executor: Executor | None = None
) -> tuple[dict[str, list[SliceFile]], list[tuple[str, str]]]:
    """Read the header of every DICOM file under `folder`.

    Files without the suffix .dcm that are no DICOM (licences, annotations) are passed over. Links are not followed.

    Args:
        folder: where to look.
        executor: reads in parallel if given.

    Returns:
        Files by SeriesInstanceUID, in order of path; and (path, reason) of each file that could not be read.
    """
    faults = []
    walk = os.walk(folder, onerror=lambda error: faults.append((error.filename, f"unreadable ({reason_of(error)})")))
    paths = sorted(os.path.join(root, name) for root, _, names in walk for name in names)
    paths = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    chunks = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    results: Iterable = executor.map(_headers, chunks) if executor else map(_headers, chunks)
    series: dict[str, list[SliceFile]] = {}
    with tqdm(total=len(paths), desc="DICOM headers", unit="file", mininterval=1) as progress:
        for chunk in results:
            for entry in chunk:
                if isinstance(entry, SliceFile):
                    series.setdefault(entry.series_instance_uid, []).append(entry)
                elif entry[0].lower().endswith(".dcm") or entry[1] != "not a DICOM file":
                    faults.append(entry)
            progress.update(len(chunk))
    return series, faults


def read_slice(path: str, max_pixels: int = MAX_EDGE**2) -> CtSlice:
    """One axial CT slice in Hounsfield units; one of more than `max_pixels` is refused before its pixels are decoded.

    Rescale slope and intercept are applied and rounded to whole HU; pixels of the padding value that are no Hounsfield unit, and all
    values below -1024, become -1024.

    Raises:
        DicomError: with the reason, if the file is unreadable, not CT, not axial, has several frames, pixels that are not square or not
            decodable, or no rescale.
    """
    dataset = _open(path)
    try:
        modality = str(dataset.get("Modality", ""))
        if modality != "CT":
            raise DicomError(f"modality {modality!r} instead of CT")
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames != 1:
            raise DicomError(f"{frames} frames in one file instead of one slice")
        if int(dataset.get("SamplesPerPixel", 1)) != 1:
            raise DicomError(f"{dataset.SamplesPerPixel} samples a pixel instead of one")
        shape = int(dataset.Rows), int(dataset.Columns)
        if not (16 <= min(shape) and max(shape) <= MAX_EDGE):
            raise DicomError(f"{shape[0]}x{shape[1]} pixels, but 16..{MAX_EDGE} a side are read")
        if shape[0] * shape[1] > max_pixels:
            raise DicomError(f"{shape[0]}x{shape[1]} pixels, but at most {max_pixels} in all are read")
        row_spacing, column_spacing = (float(value) for value in dataset.PixelSpacing)
        if not (0.1 <= row_spacing <= 5 and abs(row_spacing - column_spacing) < 0.01 * row_spacing):
            raise DicomError(
                f"pixel spacing {row_spacing:g} x {column_spacing:g} mm, but square pixels of 0.1..5 mm are needed"
            )
        orientation = [float(value) for value in dataset.ImageOrientationPatient]
        # supine or prone: rows run along x, columns along y, both of the same sign
        if len(orientation) != 6 or not (
            abs(orientation[0]) > 0.9 and np.cross(orientation[:3], orientation[3:])[2] > 0.9
        ):
            raise DicomError(f"orientation {orientation} is not that of an axial slice seen from the feet")
        if dataset.get("RescaleSlope") is None or dataset.get("RescaleIntercept") is None:
            raise DicomError("no rescale slope and intercept")
        if str(dataset.get("RescaleType") or "HU").strip().upper() not in ("HU", "US", "HU_MOD"):
            raise DicomError(f"rescale type {str(dataset.RescaleType)[:16]!r} instead of HU")
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        if not (np.isfinite([slope, intercept]).all() and slope > 0):
            raise DicomError(f"rescale slope {slope:g} and intercept {intercept:g} make no Hounsfield units")
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            encoded = len(dataset.get("PixelData") or b"")
            if encoded > 4 * 2 * shape[0] * shape[1] + 2**20:
                raise DicomError(
                    f"{encoded} bytes of compressed pixel data, more than {shape[0]}x{shape[1]} pixels need"
                )
            encoded_shape = _encoded_shape(dataset)
            if encoded_shape not in (None, shape):
                raise DicomError(f"compressed pixel data of shape {encoded_shape} instead of {shape}")
        stored = dataset.pixel_array
        if stored.shape != shape:
            raise DicomError(f"pixel data of shape {stored.shape} instead of {shape}")
        whole = slope == 1 and intercept == int(intercept)  # as in nearly every scan; integers are faster
        hu = stored.astype(np.int32) + int(intercept) if whole else np.rint(stored * slope + intercept)
        padding = dataset.get("PixelPaddingValue")
        if padding is not None:
            limits = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
            hu[(stored >= limits[0]) & (stored <= limits[1]) & (hu > 3071)] = -1024
        if not (np.isfinite(hu).all() and ((hu > -1024) & (hu <= 3071)).any()):
            raise DicomError(f"values {hu.min():g}..{hu.max():g} are no Hounsfield units")
        thickness = dataset.get("SliceThickness")
        if thickness is not None and not float(thickness) > 0:
            raise DicomError(f"slice thickness {thickness} mm")
        return CtSlice(
            np.clip(hu, -1024, 32767).astype(np.int16),
            row_spacing,
            None if thickness is None else float(thickness),
            bool(str(dataset.get("ContrastBolusAgent") or "").strip()),
        )
    except DicomError:
        raise
    except Exception as error:
        raise DicomError(f"unreadable ({reason_of(error)})") from error
