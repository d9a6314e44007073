"""The pixels of a slice: decoded, with padding found, in Hounsfield units."""

import io

import numpy as np
import PIL.Image
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID
from scipy.ndimage import label

from ...ct_limits import MAX_STORED_HU, is_chest_hu
from ...hounsfield import HU_MIN
from .frames import frame_count
from .header import DicomError, Header, rescale_of

MAX_COMPRESSED_RATIO = 4  # compressed pixel data may have this many times the bytes of the plain pixels, and ...
MAX_COMPRESSED_BYTES = 2**20  # ... this many more
BYTES_PER_PIXEL = 2
ELEMENT_BYTES = 12  # tag, type and length before compressed pixels, which are always explicit little endian
MAX_EXTENDED_HU = 30710  # the highest value of scanners with an extended scale; what lies above is padding
MIN_PADDING_PIXELS = 16  # padding fills the corners; a few pixels of its value at the edge are chance
DECODERS = 'pip install "lsdm_diffusers[dicom]"'


def _encoded_frame(path: str, header: Header, frame: int) -> bytes:
    """The compressed stream of a frame."""
    tables = [header.dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    with open(path, "rb") as file:
        file.seek(header.pixels_at + ELEMENT_BYTES)
        return get_frame(
            file,
            frame - 1,
            number_of_frames=frame_count(header.dataset),
            extended_offsets=(tables[0], tables[1]) if all(tables) else None,
        )


def _encoded_shape(stream: bytes) -> tuple[int, int] | None:
    """Height and width that a JPEG or JPEG 2000 stream states; None for other streams.

    A stream of a few hundred bytes can state a size of gigabytes, so it is compared with the header before decoding.
    """
    try:
        with PIL.Image.open(io.BytesIO(stream), formats=["JPEG", "JPEG2000"]) as image:
            return image.height, image.width
    except PIL.UnidentifiedImageError:
        return None


def _check_compressed_size(path: str, header: Header, frame: int, shape: tuple[int, int]) -> None:
    stream = _encoded_frame(path, header, frame)
    plain_bytes = BYTES_PER_PIXEL * shape[0] * shape[1]
    if len(stream) > MAX_COMPRESSED_RATIO * plain_bytes + MAX_COMPRESSED_BYTES:
        raise DicomError(f"{len(stream)} bytes of compressed pixel data, more than {shape[0]}x{shape[1]} pixels need")
    encoded_shape = _encoded_shape(stream)
    if encoded_shape not in (None, shape):
        raise DicomError(f"compressed pixel data of shape {encoded_shape} instead of {shape}")


def _check_decoder(syntax: UID) -> None:
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


def hounsfield_units(
    path: str, header: Header, frame_header: pydicom.Dataset, frame: int, shape: tuple[int, int]
) -> np.ndarray:
    """Decode the pixels of a frame and rescale them to HU in the range of int16, (H, W).

    Args:
        path: of the file.
        header: of the file.
        frame_header: of the frame; of the file if it holds one slice.
        frame: number of the frame, from 1.
        shape: height and width that the header states.

    Raises:
        DicomError: for pixels that cannot be decoded, of another shape, or that are no HU of a chest slice.
    """
    slope, intercept = rescale_of(frame_header)
    syntax = header.dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        _check_decoder(syntax)
        _check_compressed_size(path, header, frame, shape)
    stored = pixel_array(path, index=frame - 1, transfer_syntax_uid=syntax)
    if stored.shape != shape:
        raise DicomError(f"pixel data of shape {stored.shape} instead of {shape}")
    hu: np.ndarray
    if slope == 1 and intercept == int(intercept):  # as in nearly every scan; integers are faster
        hu = stored.astype(np.int32) + int(intercept)
    else:
        hu = stored * slope + intercept
    if not np.isfinite(hu).all():
        raise DicomError("values that are no finite numbers are no Hounsfield units")
    padding = _padding_mask(frame_header, stored, hu)
    real = hu[~padding & (hu >= HU_MIN)]
    if not is_chest_hu(real):
        low, high = (real.min(), real.max()) if real.size else (hu.min(), hu.max())
        raise DicomError(
            f"values {low:g}..{high:g} are no Hounsfield units of a chest CT slice, "
            "where air is about -1000 and soft tissue 0 to 100"
        )
    hu[padding] = HU_MIN
    return np.clip(hu, HU_MIN, np.iinfo(np.int16).max)
