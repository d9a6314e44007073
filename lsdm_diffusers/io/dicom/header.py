"""The header of a DICOM file: how it is opened, its values, and what of them every slice needs."""

import os
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.misc import is_dicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from ...ct_limits import PIXEL_SPACING_MM

MAX_FILE_BYTES = 64 * 2**20  # a slice of 512x512 pixels has half a MiB; more is another kind of file, or an attack
MAX_VOLUME_BYTES = 2**31  # of a file with several frames: 4096 slices of 512x512 pixels
MIN_EDGE, MAX_EDGE = 16, 2048  # pixels
HEADER_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "InstanceNumber"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "BitsAllocated", "RescaleSlope", "RescaleIntercept", "RescaleType", "SliceThickness"),
    *("ContrastBolusAgent", "ContrastBolusAgentSequence", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]
NOT_DICOM = "not a DICOM file"
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # first bytes of a file without preamble, of either byte order


class DicomError(ValueError):
    """A file that gives no axial CT slice; the message is the reason."""


class Header(NamedTuple):
    """What a file says before its pixels."""

    dataset: pydicom.Dataset  # the elements of `HEADER_TAGS`; not to be changed
    pixels_at: int  # the byte where the element of the pixels begins


def describe_error(error: BaseException) -> str:
    """Describe an unexpected error in one line without absolute paths and memory addresses.

    Such lines are published in `skipped.csv`, and the same error gives the same line in each run.
    """
    if isinstance(error, OSError):
        text = error.strerror or ""
    else:
        text = re.sub(r"""<[^<>]*>|['"]?(/[^\s'"]+)+['"]?""", "...", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def has_no_preamble(path: str) -> bool:
    """Whether a file may be DICOM of old archives, without preamble and without the group of the file itself."""
    if is_dicom(path):
        return False
    with open(path, "rb") as file:
        return file.read(2) in FIRST_GROUPS


def is_enhanced_ct(path: str) -> bool:
    """Whether a file calls itself an enhanced CT, before anything else of it is read."""
    if not is_dicom(path):
        return False
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
    except Exception:  # a broken file can raise nearly anything inside the parser; `open_header` says what it is
        return False
    return meta.get("MediaStorageSOPClassUID") in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)


def open_header(path: str) -> Header:
    """Read the header of a file that is not too large, not deflated, and DICOM; every failure becomes a DicomError.

    A file without preamble is taken as DICOM if it begins with a group that comes first and states its SOPClassUID.
    """
    try:
        status = os.stat(path)
        return _open_header(path, status.st_mtime_ns, status.st_size)
    except DicomError:
        raise
    except Exception as error:  # a broken file can raise nearly anything inside the parser
        raise DicomError(f"unreadable ({describe_error(error)})") from error


@lru_cache(maxsize=1)  # the frames of a file come one after the other, and hundreds of them make a long header
def _open_header(path: str, mtime_ns: int, size: int) -> Header:
    without_preamble = has_no_preamble(path)
    if not (without_preamble or is_dicom(path)):
        raise DicomError(NOT_DICOM)
    if size > MAX_VOLUME_BYTES:
        raise DicomError(f"file of {size} bytes, more than {MAX_VOLUME_BYTES}")
    if not without_preamble:
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:  # nothing says how large it is before it is unpacked
            raise DicomError("deflated transfer syntax")
    with open(path, "rb") as file:
        try:
            dataset = pydicom.dcmread(file, force=without_preamble, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        except Exception as error:
            if without_preamble:  # any file may begin with two such bytes
                raise DicomError(NOT_DICOM) from error
            raise
        pixels_at = file.tell()
    if without_preamble:
        _complete(dataset)
    if size > MAX_FILE_BYTES and "PerFrameFunctionalGroupsSequence" not in dataset:
        raise DicomError(f"file of {size} bytes, more than a slice has ({MAX_FILE_BYTES})")
    return Header(dataset, pixels_at)


def _complete(dataset: pydicom.Dataset) -> None:
    """Check that a file without preamble is DICOM, and add the transfer syntax that it leaves out."""
    if "SOPClassUID" not in dataset:
        raise DicomError(NOT_DICOM)
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise DicomError("deflated transfer syntax")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little_endian = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def text_of(dataset: pydicom.Dataset, keyword: str) -> str:
    """The value of an element as the file states it, also where it breaks the rules of its type; "" without it."""
    if keyword not in dataset:
        return ""
    value = dataset.get_item(keyword).value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    elif not isinstance(value, str) and hasattr(value, "__iter__"):
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip(" \0")


def numbers(dataset: pydicom.Dataset, keyword: str, count: int) -> list[float]:
    """The numbers of an element of decimal strings.

    Raises:
        DicomError: if the element is absent, or not `count` numbers.
    """
    text = text_of(dataset, keyword)
    if not text:
        raise DicomError(f"no {keyword} in the header")
    try:
        numbers = [float(number) for number in text.split("\\")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        shown = text[:40].encode("ascii", "replace").decode()
        needed = "a number is" if count == 1 else f"{count} numbers are"
        raise DicomError(f"{keyword} '{shown}' in the header, but {needed} needed")
    return numbers


def number_or_none(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """The number of an element that labels a slice or breaks a tie; None if it is absent or no number."""
    try:
        (number,) = numbers(dataset, keyword, 1)
    except DicomError:
        return None
    return number if np.isfinite(number) else None


def slice_shape(dataset: pydicom.Dataset, max_pixels: int) -> tuple[int, int]:
    """Height and width of the slice, if the file holds one CT slice of a possible size."""
    modality = str(dataset.get("Modality", ""))
    if modality != "CT":
        raise DicomError(f"modality {modality!r} instead of CT")
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise DicomError(f"{dataset.SamplesPerPixel} samples a pixel instead of one")
    height, width = int(dataset.Rows), int(dataset.Columns)
    if min(height, width) < MIN_EDGE or max(height, width) > MAX_EDGE:
        raise DicomError(f"{height}x{width} pixels, but {MIN_EDGE}..{MAX_EDGE} a side are read")
    if height * width > max_pixels:
        raise DicomError(f"{height}x{width} pixels, but at most {max_pixels} in all are read")
    return height, width


def pixel_spacing_of(dataset: pydicom.Dataset) -> float:
    """Edge of a pixel in mm, if pixels are square."""
    low, high = PIXEL_SPACING_MM
    row_spacing, column_spacing = numbers(dataset, "PixelSpacing", 2)
    square = abs(row_spacing - column_spacing) < 0.01 * row_spacing
    if not (square and low <= row_spacing <= high):
        raise DicomError(
            f"pixel spacing {row_spacing:g} x {column_spacing:g} mm, "
            f"but square pixels of {low:g}..{high:g} mm are needed"
        )
    return row_spacing


def rescale_of(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Slope and intercept that turn stored values into HU."""
    if not (text_of(dataset, "RescaleSlope") and text_of(dataset, "RescaleIntercept")):
        raise DicomError("no rescale slope and intercept")
    if str(dataset.get("RescaleType") or "HU").strip().upper() not in ("HU", "US", "HU_MOD"):
        raise DicomError(f"rescale type {str(dataset.RescaleType)[:16]!r} instead of HU")
    (slope,), (intercept,) = numbers(dataset, "RescaleSlope", 1), numbers(dataset, "RescaleIntercept", 1)
    if not (np.isfinite([slope, intercept]).all() and slope > 0):
        raise DicomError(f"rescale slope {slope:g} and intercept {intercept:g} make no Hounsfield units")
    return slope, intercept
