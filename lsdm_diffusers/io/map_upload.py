"""A semantic map from an uploaded file: a map, or a CT slice from which the map is made.

Files are not trusted. Bytes are counted before they are read, and pixels before they are decoded. Nothing is unpickled
or written. Every refusal is a ValueError with one sentence for the person who uploaded the file.
"""

import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import PIL.Image

from ..ct_limits import DEFAULT_PIXEL_SPACING, PIXEL_SPACING_MM, check_pixel_spacing, is_chest_hu
from ..hounsfield import HU_MIN
from ..labels import NUM_LABELS, SemanticLabel
from ..map_file import JPEG_START, NIFTI_HEADER_BYTES, NPY_START, check_not_one_hot, is_nifti, read_nifti_map
from ..map_image import JPEG_REFUSAL, labels_from_image
from ..segmentation import semantic_map_from_hu

if TYPE_CHECKING:
    from .dicom import SliceFile

MIN_EDGE, MAX_EDGE = 128, 1024  # pixels
MULTIPLE = 32  # height and width are padded to multiples of this many pixels, as the pipeline needs
HEADER_BYTES = 2**20  # allowed beside the pixels; to read a header of millions of tiny entries takes minutes
MAX_PNG_PIXEL_BYTES = 8  # RGBA of 16 bits
MAX_DICOM_PIXEL_BYTES = 4
PNG, DICOM = b"\x89PNG\r\n\x1a\n", b"DICM"  # first bytes; those of DICOM stand behind 128 others
DICOM_PREAMBLE_BYTES = 128
DICOM_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # of a DICOM file without preamble
ACCEPTED = (
    "a semantic map as PNG (labels 0 to 7, or the colours of the legend), .npy or NIfTI of labels, "
    "or a CT slice as DICOM, 16-bit PNG (HU + 1024) or .npy in HU"
)

Kind = Literal["map", "ct"]


class UploadedMap(NamedTuple):
    """What was read from an upload."""

    semantic_map: np.ndarray  # (H, W) uint8, labels 0..7, H and W multiples of 32 in 128..1024
    kind: Kind  # what the file held
    pixel_spacing: float  # mm
    message: str  # what was read and what was changed, in plain sentences
    hu: np.ndarray | None  # (H, W) int16, the CT slice that the map was made from


def _check_shape(shape: tuple[int, ...], max_pixels: int) -> None:
    height, width = shape
    possible = MIN_EDGE <= min(height, width) and max(height, width) <= MAX_EDGE
    if not possible or height * width > max_pixels:
        raise ValueError(f"The image has {width}x{height} pixels, but {MIN_EDGE} to {MAX_EDGE} a side are accepted.")


def _check_hu(values: np.ndarray) -> np.ndarray:
    """Hounsfield units as int16, if they can be those of a slice through the chest: air and tissue."""
    without_number = int((~np.isfinite(values)).sum())
    if without_number:
        raise ValueError(
            f"The slice has {without_number} pixels without a number (NaN or infinite), but each needs its HU."
        )
    low, high = float(values.min()), float(values.max())
    limits = np.iinfo(np.int16)
    if not is_chest_hu(values) or low < limits.min or high > limits.max:
        raise ValueError(
            f"The values {low:g} to {high:g} are not HU of a chest CT slice, "
            "where air is about -1000 and soft tissue 0 to 100."
        )
    return np.rint(np.clip(values, HU_MIN, limits.max)).astype(np.int16)


def _check_size(path: Path, pixel_bytes: int) -> None:
    size = path.stat().st_size
    if size > pixel_bytes + HEADER_BYTES:
        raise ValueError(f"The file has {size / 1e6:.1f} MB, much more than the pixels of one slice need.")


def _read_png(path: Path, max_pixels: int) -> tuple[Kind, np.ndarray, float | None]:
    """Labels of a map, or HU of a 16-bit slice, and the pixel spacing in mm if the file states it."""
    with open(path, "rb") as file:
        head = file.read(26)
    if len(head) < 26 or head[12:16] != b"IHDR":
        raise ValueError("The PNG file is damaged or cut off.")
    width, height, bit_depth = struct.unpack(">IIB", head[16:25])
    _check_shape((height, width), max_pixels)
    _check_size(path, MAX_PNG_PIXEL_BYTES * height * width)
    try:
        with PIL.Image.open(path, formats=["PNG"]) as opened:
            opened.load()
            image: PIL.Image.Image = opened
    except Exception as error:  # a broken file can raise nearly anything inside the decoder
        raise ValueError("The PNG file is damaged or cut off.") from error

    spacing = _stated_pixel_spacing(image)
    if bit_depth == 16 and image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.float32)
        if pixels.max() >= NUM_LABELS:
            return "ct", _check_hu(pixels + HU_MIN), spacing
    values = labels_from_image(image, "The image", bit_depth)
    if values.max() >= NUM_LABELS:
        raise ValueError(
            f"This is a grey picture with values up to {values.max()}, which are neither labels nor HU; "
            f"upload {ACCEPTED}."
        )
    return "map", values.astype(np.uint8), spacing


def _stated_pixel_spacing(image: PIL.Image.Image) -> float | None:
    """Edge of a pixel in mm that the PNG text "pixel_spacing_mm" states, as in the example maps."""
    text = image.info.get("pixel_spacing_mm")
    if text is None:
        return None
    low, high = PIXEL_SPACING_MM
    try:
        spacing = float(text)
    except (TypeError, ValueError):
        spacing = 0.0
    if not low <= spacing <= high:
        raise ValueError(f"The PNG states an impossible pixel spacing; {low:g} to {high:g} mm are possible.")
    return spacing


def _read_npy(path: Path, max_pixels: int) -> tuple[Kind, np.ndarray]:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: no more is read than the file has
    except Exception as error:
        raise ValueError("The .npy file is damaged, cut off, or holds something other than numbers.") from error
    if stored.dtype.kind in "biuf" and stored.size <= NUM_LABELS * max_pixels:
        check_not_one_hot(stored, "The .npy file")
    if stored.ndim != 2:
        raise ValueError(
            f"The .npy file has an array of shape {stored.shape}, but one slice (height, width) is needed."
        )
    if stored.dtype.kind not in "iuf":
        raise ValueError(
            f"The .npy file has values of type {stored.dtype.name}, but whole or decimal numbers in HU are needed."
        )
    _check_shape(stored.shape, max_pixels)
    values = np.array(stored)
    if values.dtype.kind in "iu" and 0 <= values.min() and values.max() < NUM_LABELS:
        return "map", values.astype(np.uint8)
    return "ct", _check_hu(values)


def _read_nifti(path: Path, max_pixels: int) -> np.ndarray:
    values = read_nifti_map(path, "The file")
    _check_shape(values.shape, max_pixels)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= NUM_LABELS:
        raise ValueError(
            f"The NIfTI file has values {values.min():g} to {values.max():g}, but labels 0 to {NUM_LABELS - 1} are "
            "needed; upload a CT slice as DICOM or .npy."
        )
    return values.astype(np.uint8)


def _middle_frame(entries: "list[SliceFile]") -> "SliceFile":
    """The slice in the middle of those that can be used, in the order of their positions."""
    usable = [entry for entry in entries if entry.fault is None and entry.z_mm is not None]
    ordered = sorted(usable, key=lambda entry: (entry.z_mm or 0.0, entry.rank))
    return ordered[len(ordered) // 2] if ordered else entries[0]


def _read_dicom(path: Path, max_pixels: int) -> tuple[np.ndarray, float, str]:
    """HU, pixel spacing in mm, and sentences on which frame was taken and how it was turned, "" if neither was."""
    from .dicom import DicomError, read_headers, read_slice
    from .dicom.header import is_enhanced_ct

    sentences = []
    try:
        if not is_enhanced_ct(str(path)):
            _check_size(path, MAX_DICOM_PIXEL_BYTES * MAX_EDGE**2)
        entries = read_headers(str(path))
        chosen = _middle_frame(entries)
        if chosen.fault is not None and len(entries) == 1:
            raise DicomError(chosen.fault)
        ct = read_slice(str(path), max_pixels=max_pixels, frame=chosen.frame)
        if len(entries) > 1:
            place = "" if chosen.z_mm is None else f" (z = {chosen.z_mm:g} mm)"
            sentences.append(
                f"The file holds {len(entries)} slices: the middle one, frame {chosen.frame}{place}, was taken."
            )
    except DicomError as error:
        reason = str(error)
        if reason == "not a DICOM file":
            raise ValueError(f"The file is neither PNG, DICOM nor .npy; upload {ACCEPTED}.") from error
        if reason.startswith("unreadable"):
            raise ValueError("The DICOM file is damaged or cut off.") from error
        # the reason may hold text of the file, and a page may show it as HTML
        reason = reason.translate(dict.fromkeys(map(ord, "<>&")))
        raise ValueError(f"The DICOM file cannot be used: {reason}.") from error
    _check_shape(ct.hu.shape, max_pixels)
    if not ct.orientation.is_standard:
        sentences.append(f"It was brought to the standard orientation: {ct.orientation}.")
    return _check_hu(ct.hu), ct.pixel_spacing_mm, " ".join(sentences)


def _read_start(path: Path, max_bytes: float) -> bytes:
    """The first bytes of a file, which say what it is."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("The upload is not a file.")
        if status.st_size > max_bytes:
            raise ValueError(
                f"The file has {status.st_size / 1e6:.1f} MB, but at most {max_bytes / 1e6:g} MB are accepted."
            )
        with open(path, "rb") as file:
            return file.read(NIFTI_HEADER_BYTES)
    except OSError as error:
        raise ValueError("The uploaded file cannot be read.") from error


def _pad_to_multiple(image: np.ndarray, value: int) -> np.ndarray:
    """The image (H, W) padded with `value` to multiples of 32, half on each side."""
    missing = [-size % MULTIPLE for size in image.shape]
    return np.pad(image, [(pad // 2, pad - pad // 2) for pad in missing], constant_values=value)


def read_map_upload(
    path: str | Path,
    max_bytes: float = 20e6,
    max_pixels: int = 2048 * 2048,
    pixel_spacing: float | None = None,
) -> UploadedMap:
    """Read the semantic map of an uploaded file. The content says what the file is, not its name.

    * A map, as `read_semantic_map` reads it: PNG of labels 0..7 or in the colours of `PALETTE`, .npy, NIfTI.
    * A CT slice: DICOM, also without preamble, .npy in HU, or 16-bit PNG of HU + 1024. `semantic_map_from_hu` makes
      the map. Of an enhanced CT the middle slice is taken, and the message says which frame it is.

    Height and width are padded to multiples of 32 with background (HU -1024), half on each side; the message says so.

    Args:
        path: of the file.
        max_bytes: larger files are refused before they are read.
        max_pixels: larger images are refused before they are decoded.
        pixel_spacing: edge of a pixel in mm, 0.1..5, of a file that does not state it. DICOM files state it, and PNG
            files with a text "pixel_spacing_mm". For the others the default is 0.7.

    Raises:
        ValueError: with one plain sentence, for a file that gives no map.
    """
    if pixel_spacing is not None:
        check_pixel_spacing(pixel_spacing)
    path = Path(path)
    start = _read_start(path, max_bytes)

    kind: Kind
    stated_spacing, turned = None, ""
    if start.startswith(PNG):
        kind, pixels, stated_spacing = _read_png(path, max_pixels)
    elif start.startswith(NPY_START):
        kind, pixels = _read_npy(path, max_pixels)
    elif start[DICOM_PREAMBLE_BYTES:].startswith(DICOM) or start.startswith(DICOM_FIRST_GROUPS):
        kind, (pixels, stated_spacing, turned) = "ct", _read_dicom(path, max_pixels)
    elif is_nifti(start):
        kind, pixels = "map", _read_nifti(path, max_pixels)
    elif start.startswith(JPEG_START):
        raise ValueError(f"The file {JPEG_REFUSAL}")
    elif not start:
        raise ValueError("The file is empty.")
    else:
        raise ValueError(f"The file is neither PNG, DICOM nor .npy; upload {ACCEPTED}.")

    spacing = stated_spacing or pixel_spacing or DEFAULT_PIXEL_SPACING
    hu = None
    if kind == "ct":
        hu, labels = pixels, semantic_map_from_hu(pixels, spacing)
        sentences = [f"CT slice of {labels.shape[1]}x{labels.shape[0]} pixels; its map was made from the HU."]
        if turned:
            sentences.append(turned)
    else:
        labels = pixels
        sentences = [f"Semantic map of {labels.shape[1]}x{labels.shape[0]} pixels."]
        if not labels.any():
            raise ValueError("The map holds background only, but a body with lungs is needed.")
    if not (labels == SemanticLabel.LUNG).any():
        sentences.append("No lung was found in it.")
    if stated_spacing is None and pixel_spacing is None:
        sentences.append(f"The file does not say how large a pixel is: {spacing:g} mm is assumed.")
    padded = _pad_to_multiple(labels, SemanticLabel.BACKGROUND)
    if padded.shape != labels.shape:
        size = f"{padded.shape[1]}x{padded.shape[0]}"
        sentences.append(f"It was padded with background to {size}, multiples of {MULTIPLE}.")
    if hu is not None:
        hu = _pad_to_multiple(hu, HU_MIN)
    return UploadedMap(padded, kind, spacing, " ".join(sentences), hu)


def png_pixel_spacing(path: str | Path) -> float | None:
    """Edge of a pixel in mm that a PNG states in its text "pixel_spacing_mm"; None without it, and for other files.

    Raises:
        ValueError: for an impossible spacing.
    """
    if Path(path).suffix.lower() != ".png":
        return None
    with PIL.Image.open(path) as image:
        image.load()  # the text can follow the pixels
        return _stated_pixel_spacing(image)
