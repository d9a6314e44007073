"""A semantic map from a file that anybody may have uploaded: a PNG map, or a CT slice from which the map is made.

Files are not trusted. Bytes are counted before reading, pixels before decoding; nothing is unpickled, and nothing is written. Every
refusal is a ValueError with one sentence for the person who uploaded the file.
"""

import stat
import struct
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import PIL.Image
from scipy.ndimage import distance_transform_edt

from ..labels import NUM_LABELS, PALETTE, SemanticLabel
from ..segmentation import semantic_map_from_hu

MIN_EDGE, MAX_EDGE, MULTIPLE = 128, 1024, 32  # pixels
HEADER_BYTES = (
    2**20
)  # what a file may hold beside its pixels: reading millions of tiny entries of a header takes minutes
DEFAULT_PIXEL_SPACING = 0.7  # mm, of a chest CT of usual size
PNG, NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
WANTED = "a semantic map as PNG (labels 0 to 7, or the colours of the legend), or a CT slice as DICOM, 16-bit PNG (HU + 1024) or .npy in HU"


class UploadedMap(NamedTuple):
    """What an upload gave."""

    semantic_map: np.ndarray  # (H, W) uint8, labels 0..7, H and W multiples of 32 in 128..1024
    kind: Literal["map", "ct"]  # what the file held
    pixel_spacing: float  # mm
    message: str  # what was read and what was changed, in plain sentences
    hu: np.ndarray | None  # (H, W) int16, the CT slice that the map was made from


def labels_from_colours(rgb: np.ndarray) -> np.ndarray:
    """Labels (H, W) of a drawing (H, W, 3) in the colours of `PALETTE`.

    A pixel of another colour, as on the antialiased edge of a brush, takes the nearest of the colours that touch it: the nearest of all
    eight would often put a third label between two, as high density blended with soft tissue has nearly the colour of the body.

    Raises:
        ValueError: if more than three tenths of what is drawn has other colours.
    """
    colours, place = np.unique(rgb.astype(np.uint32) @ np.uint32([65536, 256, 1]), return_inverse=True)
    channels = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.int32)
    squares = ((channels[:, None] - PALETTE.astype(np.int32)) ** 2).sum(
        axis=2
    )  # distance of each colour to each of the legend
    labels = np.argmin(squares, axis=1).astype(np.uint8)[place].reshape(rgb.shape[:2])
    clear = (np.min(squares, axis=1) <= 3 * 8**2)[place].reshape(
        labels.shape
    )  # off by 8 of 255 in each channel, as after a conversion
    drawn = ~(clear & (labels == SemanticLabel.BACKGROUND))
    if (~clear).sum() > 0.3 * drawn.sum():
        raise ValueError(
            f"This is a colour picture and no semantic map: {clear.mean():.0%} of it has colours of the legend; needed is {WANTED}."
        )
    if clear.all():
        return labels
    row, column = distance_transform_edt(~clear, return_distances=False, return_indices=True)
    result = labels[row, column]
    unclear = np.nonzero(~clear)
    candidates = squares[place.reshape(labels.shape)[unclear]]
    for label in range(NUM_LABELS):
        touched = cv2.dilate((clear & (labels == label)).astype(np.uint8), np.ones((3, 3), np.uint8))
        candidates[touched[unclear] == 0, label] = np.iinfo(np.int32).max
    touching = (
        candidates.min(axis=1) < np.iinfo(np.int32).max
    )  # the others, inside a broad edge, keep that of the nearest clear pixel
    result[tuple(index[touching] for index in unclear)] = candidates[touching].argmin(axis=1)
    return result


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels or max(height, width) > MAX_EDGE or min(height, width) < MIN_EDGE:
        raise ValueError(f"The image has {width}x{height} pixels, but {MIN_EDGE} to {MAX_EDGE} a side are accepted.")


def _check_hu(values: np.ndarray) -> np.ndarray:
    """Hounsfield units as int16, if they can be those of a slice through the chest: air and tissue."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"The slice has {int((~np.isfinite(values)).sum())} pixels without a number (NaN or infinite), but each needs its HU."
        )
    low, high = float(values.min()), float(values.max())
    if low > -500 or high < -200 or low < -32768 or high > 32767:
        raise ValueError(
            f"The values {low:g} to {high:g} are no HU of a chest CT slice, where air is about -1000 and soft tissue 0 to 100."
        )
    return np.rint(np.clip(values, -1024, 32767)).astype(np.int16)


def _check_size(path: Path, pixel_bytes: int) -> None:
    size = path.stat().st_size
    if size > pixel_bytes + HEADER_BYTES:
        raise ValueError(f"The file has {size / 1e6:.1f} MB, much more than the pixels of one slice need.")


def _read_png(path: Path, max_pixels: int) -> tuple[Literal["map", "ct"], np.ndarray, float | None]:
    """Labels, or HU of a 16-bit slice; and the edge of a pixel in mm where the text "pixel_spacing_mm" tells it, as in the example maps."""
    with open(path, "rb") as file:
        head = file.read(26)
    if len(head) < 26 or head[12:16] != b"IHDR":
        raise ValueError("The PNG file is damaged or cut off.")
    width, height, bit_depth = struct.unpack(">IIB", head[16:25])
    _check_pixels(height, width, max_pixels)
    _check_size(path, 8 * height * width)
    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            image.load()
    except Exception as error:  # a broken file can raise nearly anything inside the decoder
        raise ValueError("The PNG file is damaged or cut off.") from error

    spacing = _told_spacing(image)
    if image.mode == "P":
        labels = np.asarray(image)
        used = {colour for _, colour in image.convert("RGB").getcolors(256)}
        in_legend = used <= set(map(tuple, PALETTE.tolist())) and len(used) == len(np.unique(labels))
        if labels.max() >= NUM_LABELS or in_legend:  # the indices of a paint program follow no order
            return "map", labels_from_colours(np.asarray(image.convert("RGB"))), spacing
        return "map", labels, spacing
    if image.mode in ("RGBA", "LA"):  # what is transparent is background
        black = PIL.Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = PIL.Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    if image.mode == "RGB":
        pixels = np.asarray(image)
        if (pixels != pixels[..., :1]).any():
            return "map", labels_from_colours(pixels), spacing
        pixels = pixels[..., 0]
    else:
        pixels = np.asarray(image).astype(np.int32)
        if bit_depth in (2, 4):
            pixels //= 255 // (2**bit_depth - 1)  # Pillow spreads few bits over 0..255
    if pixels.max() < NUM_LABELS:
        return "map", pixels.astype(np.uint8), spacing
    if bit_depth == 16 and image.mode != "RGB":
        return "ct", _check_hu(pixels.astype(np.float32) - 1024), spacing
    raise ValueError(
        f"This is a grey picture with values up to {pixels.max()}, which are neither labels nor HU; needed is {WANTED}."
    )


def _told_spacing(image: PIL.Image.Image) -> float | None:
    told = image.info.get("pixel_spacing_mm")
    if told is None:
        return None
    try:
        spacing = float(told)
    except (TypeError, ValueError):
        spacing = 0.0
    if not 0.1 <= spacing <= 5:
        raise ValueError("The PNG tells a pixel spacing that is none; 0.1 to 5 mm are possible.")
    return spacing


def _read_npy(path: Path, max_pixels: int) -> tuple[Literal["map", "ct"], np.ndarray]:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)  # maps the file: no more is read than there is
    except Exception as error:
        raise ValueError("The .npy file is damaged, cut off, or holds something else than numbers.") from error
    if stored.ndim != 2:
        raise ValueError(
            f"The .npy file has an array of shape {stored.shape}, but one slice (height, width) is needed."
        )
    if stored.dtype.kind not in "iuf":
        raise ValueError(
            f"The .npy file has values of type {stored.dtype.name}, but whole or decimal numbers in HU are needed."
        )
    _check_pixels(*stored.shape, max_pixels)
    values = np.array(stored)
    if values.dtype.kind in "iu" and 0 <= values.min() and values.max() < NUM_LABELS:
        return "map", values.astype(np.uint8)
    return "ct", _check_hu(values)


def _read_dicom(path: Path, max_pixels: int) -> tuple[np.ndarray, float]:
    from .dicom import DicomError, read_slice

    _check_size(path, 4 * MAX_EDGE**2)
    try:
        ct = read_slice(str(path), max_pixels=max_pixels)
    except DicomError as error:
        reason = str(error)
        if reason.startswith("unreadable"):
            raise ValueError(
                "The DICOM file is damaged or cut off, or its pixels are compressed in a way that cannot be read."
            ) from error
        raise ValueError(
            f"The DICOM file cannot be used: {reason.translate(dict.fromkeys(map(ord, '<>&')))}."
        ) from error
    _check_pixels(*ct.hu.shape, max_pixels)
    return _check_hu(ct.hu), ct.pixel_spacing_mm


def read_map_upload(
    path, max_bytes: float = 20e6, max_pixels: int = 2048 * 2048, pixel_spacing: float | None = None
) -> UploadedMap:
    """The semantic map of an uploaded file, which its content tells apart, not its name.

    * PNG map: labels 0..7 as grey values or palette indices, or a drawing in the colours of `PALETTE`;
    * CT slice: DICOM, .npy in HU, or 16-bit PNG of HU + 1024, from which `semantic_map_from_hu` makes the map.

    Height and width are padded to multiples of 32 with background (HU -1024), half on each side; the message says so.

    Args:
        path: of the file.
        max_bytes: larger files are refused unread.
        max_pixels: larger images are refused undecoded.
        pixel_spacing: edge of a pixel in mm, 0.1..5, of a file that does not say it (all but DICOM, and PNG with a text
            "pixel_spacing_mm"). Without it, 0.7.

    Raises:
        ValueError: with one plain sentence, for a file that gives no map.
    """
    if pixel_spacing is not None and not 0.1 <= pixel_spacing <= 5:
        raise ValueError(f"`pixel_spacing` is {pixel_spacing}, but the edge of a pixel of chest CT is 0.1..5 mm.")
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("The upload is no file.")
        if status.st_size > max_bytes:
            raise ValueError(
                f"The file has {status.st_size / 1e6:.1f} MB, but at most {max_bytes / 1e6:g} MB are accepted."
            )
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError as error:
        raise ValueError("The uploaded file cannot be read.") from error

    spacing = None
    if head.startswith(PNG):
        kind, pixels, spacing = _read_png(path, max_pixels)
    elif head.startswith(NPY):
        kind, pixels = _read_npy(path, max_pixels)
    elif head[128:] == b"DICM":
        kind, (pixels, spacing) = "ct", _read_dicom(path, max_pixels)
    elif not head:
        raise ValueError("The file is empty.")
    else:
        raise ValueError(f"The file is neither PNG, DICOM nor .npy; needed is {WANTED}.")

    told, hu = [], None
    assumed = spacing is None and pixel_spacing is None
    spacing = spacing or pixel_spacing or DEFAULT_PIXEL_SPACING
    if kind == "ct":
        hu, labels = pixels, semantic_map_from_hu(pixels, spacing)
        told.append(f"CT slice of {labels.shape[1]}x{labels.shape[0]} pixels; its map was made from the HU.")
    else:
        labels = pixels
        told.append(f"Semantic map of {labels.shape[1]}x{labels.shape[0]} pixels.")
        if not labels.any():
            raise ValueError("The map holds background only, but a body with lungs is needed.")
    if not (labels == SemanticLabel.LUNG).any():
        told.append("No lung was found in it.")
    if assumed:
        told.append(f"The file does not say how large a pixel is: {spacing:g} mm is assumed.")
    missing = [-size % MULTIPLE for size in labels.shape]
    if any(missing):
        sides = [(lack // 2, lack - lack // 2) for lack in missing]
        labels = np.pad(labels, sides, constant_values=SemanticLabel.BACKGROUND)
        hu = None if hu is None else np.pad(hu, sides, constant_values=-1024)
        told.append(f"It was padded with background to {labels.shape[1]}x{labels.shape[0]}, multiples of {MULTIPLE}.")
    return UploadedMap(labels, kind, spacing, " ".join(told), hu)
