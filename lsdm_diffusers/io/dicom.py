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
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from scipy.ndimage import label
from tqdm.auto import tqdm

from ..ct_limits import MAX_STORED_HU, PIXEL_SPACING_MM, is_chest_hu
from ..hounsfield import HU_MIN

MAX_FILE_BYTES = 64 * 2**20  # a slice of 512x512 pixels has half a MiB; more is a volume in one file, or an attack
MIN_EDGE, MAX_EDGE = 16, 2048  # pixels
MAX_COMPRESSED_RATIO = 4  # compressed pixel data may have this many times the bytes of the plain pixels, and ...
MAX_COMPRESSED_BYTES = 2**20  # ... this many more
BYTES_PER_PIXEL = 2
MIN_AXIAL_COSINE = 0.9  # of the angle between an axis of the image and one of the patient; allows 25 degrees of tilt
HEADER_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "InstanceNumber"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "BitsAllocated", "RescaleSlope", "RescaleIntercept", "RescaleType"),
]
HEADERS_PER_TASK = 256  # files that a worker reads before it answers
NOT_DICOM = "not a DICOM file"
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # first bytes of a file without preamble, of either byte order
MAX_EXTENDED_HU = 30710  # the highest value of scanners with an extended scale; what lies above is padding
MIN_PADDING_PIXELS = 16  # padding fills the corners; a few pixels of its value at the edge are chance
DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


class Orientation(NamedTuple):
    """How stored pixels are turned to the standard orientation: rows run to the patient's left, columns to the back.

    Rows and columns are exchanged first, then their order is reversed. The default is the standard orientation.
    """

    exchanged: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def turn(self, stored: np.ndarray) -> np.ndarray:
        """An image or mask (H, W) of the stored pixels in the standard orientation."""
        image = stored.T if self.exchanged else stored
        row_step = -1 if self.rows_reversed else 1
        column_step = -1 if self.columns_reversed else 1
        return np.ascontiguousarray(image[::row_step, ::column_step])

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the stored pixels of a turned slice of this shape."""
        height, width = shape
        return (width, height) if self.exchanged else (height, width)

    @property
    def is_standard(self) -> bool:
        """Whether the pixels stay as they are."""
        return not any(self)

    def __str__(self) -> str:
        if self == Orientation(rows_reversed=True, columns_reversed=True):
            return "turned by 180 degrees"
        steps = {
            "rows and columns exchanged": self.exchanged,
            "order of rows reversed": self.rows_reversed,
            "order of columns reversed": self.columns_reversed,
        }
        return ", ".join(step for step, done in steps.items() if done) or "standard"


STANDARD = Orientation()


class SliceFile(NamedTuple):
    """Where the slice of a DICOM file belongs, as its header says."""

    path: str
    patient_id: str
    series_instance_uid: str
    sop_instance_uid: str
    z_mm: float | None  # None if the header has no position
    instance_number: int
    size: int  # bytes
    fault: str | None = None  # why the header says that the file gives no slice
    orientation: Orientation = STANDARD

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

    hu: np.ndarray  # (H, W) int16, in the standard orientation; padding outside the scan circle is -1024
    pixel_spacing_mm: float
    slice_thickness_mm: float | None
    contrast_used: bool
    patient_id: str
    sop_instance_uid: str
    orientation: Orientation = STANDARD  # how the stored pixels were turned


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
    """`pydicom.dcmread` of a file that is small, not deflated, and DICOM; whatever it raises becomes a DicomError.

    Old archives hold files without preamble and without the group of the file itself. Such a file is taken as DICOM if
    it begins with a group that comes first and states its SOPClassUID.
    """
    try:
        has_preamble = is_dicom(path)
        if not has_preamble:
            with open(path, "rb") as file:
                if file.read(2) not in FIRST_GROUPS:
                    raise DicomError(NOT_DICOM)
        size = os.path.getsize(path)
        if size > MAX_FILE_BYTES:
            raise DicomError(f"file of {size} bytes, more than a slice has ({MAX_FILE_BYTES})")
        if not has_preamble:
            return _read_without_preamble(path, options)
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:  # nothing says how large it is before it is unpacked
            raise DicomError("deflated transfer syntax")
        return pydicom.dcmread(path, **options)
    except DicomError:
        raise
    except Exception as error:  # a broken file can raise nearly anything inside the parser
        raise DicomError(f"unreadable ({describe_error(error)})") from error


def _read_without_preamble(path: str, options: dict[str, Any]) -> pydicom.Dataset:
    try:
        dataset = pydicom.dcmread(path, force=True, **options)
    except Exception as error:  # any file may begin with two such bytes
        raise DicomError(NOT_DICOM) from error
    if "SOPClassUID" not in dataset:
        raise DicomError(NOT_DICOM)
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise DicomError("deflated transfer syntax")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little_endian = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    """The value of an element as the file states it, also where it breaks the rules of its type; "" without it."""
    if keyword not in dataset:
        return ""
    value = dataset.get_item(keyword).value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    elif not isinstance(value, str) and hasattr(value, "__iter__"):
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip(" \0")


def _numbers(dataset: pydicom.Dataset, keyword: str, count: int) -> list[float]:
    """The numbers of an element of decimal strings.

    Raises:
        DicomError: if the element is absent, or not `count` numbers.
    """
    text = _text(dataset, keyword)
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


def _number_or_none(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """The number of an element that labels a slice or breaks a tie; None if it is absent or no number."""
    try:
        (number,) = _numbers(dataset, keyword, 1)
    except DicomError:
        return None
    return number if np.isfinite(number) else None


def _read_header(path: str) -> SliceFile | FileFault:
    try:
        header = _open(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        try:
            (*_, z_mm) = _numbers(header, "ImagePositionPatient", 3)
        except DicomError:
            z_mm = float("nan")
        size, fault, orientation = os.path.getsize(path), None, STANDARD
        try:
            _slice_shape(header, MAX_EDGE**2)
            _pixel_spacing(header)
            orientation = _orientation(header)
            _rescale(header)
        except DicomError as error:
            fault = str(error)
        return SliceFile(
            path,
            str(header.get("PatientID", "")),
            str(header.get("SeriesInstanceUID", "")),
            str(header.get("SOPInstanceUID", "")),
            z_mm if np.isfinite(z_mm) else None,
            int(_number_or_none(header, "InstanceNumber") or 0),
            size,
            fault,
            orientation,
        )
    except DicomError as error:
        return FileFault(path, str(error))
    except Exception as error:
        return FileFault(path, f"unreadable ({describe_error(error)})")


def _read_headers(paths: list[str]) -> list[SliceFile | FileFault]:
    return [_read_header(path) for path in paths]


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
        Files by SeriesInstanceUID, in the order of their paths, and the files that could not be read.
    """
    paths, faults = find_files(folder)
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
    """Read one axial CT slice in Hounsfield units, turned to the standard orientation by its header.

    Rescale slope and intercept are applied. These pixels become -1024: those of the stated padding value that are
    joined to the border or above 3071 HU, values above 30710 HU, and all values below -1024.

    Args:
        path: of the DICOM file.
        max_pixels: a slice of more pixels is refused before its pixels are decoded.
        whole_hu: round to whole HU. False keeps the fractions of a slope that is not whole, and gives float32.

    Raises:
        DicomError: with the reason, if the file is unreadable, not CT, not axial, has several frames, no rescale,
            pixels that are not square or cannot be decoded, or values that are not those of a chest slice.
    """
    dataset = _open(path)
    try:
        shape = _slice_shape(dataset, max_pixels)
        pixel_spacing = _pixel_spacing(dataset)
        orientation = _orientation(dataset)
        hu = orientation.turn(_hounsfield_units(dataset, shape))
        hu = np.rint(hu).astype(np.int16) if whole_hu else hu.astype(np.float32)
        thickness = _number_or_none(dataset, "SliceThickness")
        return CtSlice(
            hu,
            pixel_spacing,
            thickness if thickness is not None and thickness > 0 else None,
            bool(str(dataset.get("ContrastBolusAgent") or "").strip()),
            str(dataset.get("PatientID", "")),
            str(dataset.get("SOPInstanceUID", "")),
            orientation,
        )
    except DicomError:
        raise
    except Exception as error:
        raise DicomError(f"unreadable ({describe_error(error)})") from error


def slice_fault(path: str) -> str | None:
    """Why a file gives no slice, or None if it gives one."""
    try:
        read_slice(path)
    except DicomError as error:
        return str(error)
    return None


def _slice_shape(dataset: pydicom.Dataset, max_pixels: int) -> tuple[int, int]:
    """Height and width of the slice, if the file holds one CT slice of a possible size."""
    modality = str(dataset.get("Modality", ""))
    if modality != "CT":
        raise DicomError(f"modality {modality!r} instead of CT")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DicomError(
            f"{frames} frames in one file instead of one slice: save the enhanced CT as one file for each slice"
        )
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
    row_spacing, column_spacing = _numbers(dataset, "PixelSpacing", 2)
    square = abs(row_spacing - column_spacing) < 0.01 * row_spacing
    if not (square and low <= row_spacing <= high):
        raise DicomError(
            f"pixel spacing {row_spacing:g} x {column_spacing:g} mm, "
            f"but square pixels of {low:g}..{high:g} mm are needed"
        )
    return row_spacing


def _orientation(dataset: pydicom.Dataset) -> Orientation:
    """How the pixels are turned to the standard orientation; other planes than the axial one are refused."""
    cosines = _numbers(dataset, "ImageOrientationPatient", 6)
    along_row, along_column = np.array(cosines[:3]), np.array(cosines[3:])
    exchanged = abs(along_row[1]) > abs(along_row[0])
    to_left, to_back = (along_column[0], along_row[1]) if exchanged else (along_row[0], along_column[1])
    axis = 1 if exchanged else 0
    along_axis = abs(along_row[axis]) > MIN_AXIAL_COSINE
    axial = abs(np.cross(along_row, along_column)[2]) > MIN_AXIAL_COSINE
    if not (along_axis and axial):
        raise DicomError(f"orientation {cosines} is not that of an axial slice")
    return Orientation(bool(exchanged), bool(to_back < 0), bool(to_left < 0))


def _rescale(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Slope and intercept that turn stored values into HU."""
    if not (_text(dataset, "RescaleSlope") and _text(dataset, "RescaleIntercept")):
        raise DicomError("no rescale slope and intercept")
    if str(dataset.get("RescaleType") or "HU").strip().upper() not in ("HU", "US", "HU_MOD"):
        raise DicomError(f"rescale type {str(dataset.RescaleType)[:16]!r} instead of HU")
    (slope,), (intercept,) = _numbers(dataset, "RescaleSlope", 1), _numbers(dataset, "RescaleIntercept", 1)
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


def _check_decoder(dataset: pydicom.Dataset) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise DicomError(f"pixels compressed as {syntax.name}, which pydicom does not decode") from None
    if not available:
        raise DicomError(f"pixels compressed as {syntax.name}, which needs decoders: {DECODERS}")


def _padding_mask(dataset: pydicom.Dataset, stored: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """Mask (H, W) of the pixels outside the scan circle.

    A value that is stated as padding may occur in the body as well, such as 0 HU. So only areas of it that are joined
    to the border are padding, unless the value is none of CT.
    """
    mask = hu > MAX_EXTENDED_HU
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        low, high = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
        stated = (stored >= low) & (stored <= high) & (hu > HU_MIN)
        mask |= stated & (hu > MAX_STORED_HU)
        if stated.any():
            areas, _ = label(stated)
            at_border = np.zeros(areas.max() + 1, dtype=bool)
            for edge in (areas[0], areas[-1], areas[:, 0], areas[:, -1]):
                at_border[edge] = True
            at_border &= np.bincount(areas.ravel()) >= MIN_PADDING_PIXELS
            at_border[0] = False  # what is not of the stated value
            mask |= at_border[areas]
    return mask


def _hounsfield_units(dataset: pydicom.Dataset, shape: tuple[int, int]) -> np.ndarray:
    """Decode the pixels and rescale them to HU in the range of int16, (H, W)."""
    slope, intercept = _rescale(dataset)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        _check_decoder(dataset)
        _check_compressed_size(dataset, shape)
    stored = dataset.pixel_array
    if stored.shape != shape:
        raise DicomError(f"pixel data of shape {stored.shape} instead of {shape}")
    hu: np.ndarray
    if slope == 1 and intercept == int(intercept):  # as in nearly every scan; integers are faster
        hu = stored.astype(np.int32) + int(intercept)
    else:
        hu = stored * slope + intercept
    if not np.isfinite(hu).all():
        raise DicomError("values that are no finite numbers are no Hounsfield units")
    padding = _padding_mask(dataset, stored, hu)
    real = hu[~padding & (hu >= HU_MIN)]
    if not is_chest_hu(real):
        low, high = (real.min(), real.max()) if real.size else (hu.min(), hu.max())
        raise DicomError(
            f"values {low:g}..{high:g} are no Hounsfield units of a chest CT slice, "
            "where air is about -1000 and soft tissue 0 to 100"
        )
    hu[padding] = HU_MIN
    return np.clip(hu, HU_MIN, np.iinfo(np.int16).max)
