"""Files of semantic maps: pictures, NumPy arrays and NIfTI. The content says what a file is, not its name."""

import importlib
import zlib
from pathlib import Path

import numpy as np
import PIL.Image

from .labels import NUM_LABELS
from .map_image import JPEG_REFUSAL, labels_from_image

NPY_START, GZIP_START, JPEG_START = b"\x93NUMPY", b"\x1f\x8b", b"\xff\xd8\xff"
NIFTI_HEADER_BYTES, NIFTI_END = 348, b"n+1\0"  # a NIfTI-1 header ends with these bytes
MAX_NIFTI_BYTES = 2**26  # unpacked; one slice of 2048x2048 pixels of 8 bytes has half of it


def check_not_one_hot(array: np.ndarray, name: str = "`semantic_map`") -> None:
    """Raise ValueError for a one-hot map: eight planes, first or last, of zeros and ones that sum to one."""
    for axis in (-3, -1):
        if array.ndim not in (3, 4) or array.shape[axis] != NUM_LABELS or array.size == 0:
            continue
        if ((array == 0) | (array == 1)).all() and (array.sum(axis=axis) == 1).all():
            raise ValueError(
                f"{name} is a one-hot map of shape {array.shape}, but one label a pixel is needed: "
                f"`argmax({axis})` makes it."
            )


def read_map_file(path: str | Path, name: str = "`semantic_map`") -> np.ndarray:
    """Read a map from a PNG (or another picture without loss), a `.npy` file, or a NIfTI file of one axial slice.

    Args:
        path: of the file.
        name: how a refusal names it.

    Returns:
        The values, which are not checked, as `labels_from_image` and `np.load` return them.

    Raises:
        ValueError: for a JPEG, another file, or one that is damaged.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(NIFTI_HEADER_BYTES)
    if start.startswith(NPY_START):
        try:
            stored: np.ndarray = np.load(path, allow_pickle=False)
        except Exception as error:  # a broken file can raise nearly anything
            raise ValueError(
                f"{name} is {path.name}, but that .npy file is damaged, or holds something other than numbers."
            ) from error
        return stored
    if start.startswith(JPEG_START):
        raise ValueError(f"{name} {JPEG_REFUSAL}")
    if is_nifti(start):
        return read_nifti_map(path, name)
    try:
        image = PIL.Image.open(path)
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is {path.name}, but a PNG, a .npy file or a NIfTI file of labels is needed "
            "(`read_map_upload` makes a map from a CT slice)."
        ) from error
    with image:
        try:
            return np.array(labels_from_image(image, name))
        except OSError as error:
            raise ValueError(f"{name} is {path.name}, but that picture is damaged or cut off.") from error


def is_nifti(start: bytes) -> bool:
    """Whether the first 348 bytes of a file are those of NIfTI-1, packed by gzip or not."""
    if start.startswith(GZIP_START):
        start = _unpacked(start, NIFTI_HEADER_BYTES)
    return start[NIFTI_HEADER_BYTES - len(NIFTI_END) : NIFTI_HEADER_BYTES] == NIFTI_END


def _unpacked(content: bytes, max_bytes: int) -> bytes:
    """At most that many bytes of what gzip packed."""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(content, max_bytes)
    except zlib.error:
        return b""


def read_nifti_map(path: Path, name: str) -> np.ndarray:
    """Read labels (H, W) from a NIfTI file of one axial slice, turned as its header says.

    Args:
        path: of the file.
        name: how a refusal names it.

    Returns:
        Values of which rows run from the patient's front to the back, and columns from the right to the left.

    Raises:
        ValueError: without nibabel, and for a damaged file, several slices, or no orientation in the header.
    """
    try:
        # no import statement: users of the remote code on the Hub need not have it
        nibabel = importlib.import_module("nibabel")
    except ImportError:
        raise ValueError(
            f'{name} is a NIfTI file, which needs nibabel: pip install "lsdm_diffusers[demo]", or save it as PNG.'
        ) from None
    with open(path, "rb") as file:
        content = file.read(MAX_NIFTI_BYTES + 1)
    if content.startswith(GZIP_START):
        content = _unpacked(content, MAX_NIFTI_BYTES + 1)
    if len(content) > MAX_NIFTI_BYTES:
        raise ValueError(f"{name} is a NIfTI file of more than {MAX_NIFTI_BYTES >> 20} MB, but one slice is needed.")
    try:
        stored = nibabel.Nifti1Image.from_bytes(content)
        oriented = bool(stored.header["sform_code"] or stored.header["qform_code"])
        image = nibabel.as_closest_canonical(stored)  # axes to the patient's right, front and head
        values = np.asarray(image.dataobj)
    except Exception as error:  # a broken file can raise nearly anything
        raise ValueError(f"{name} is a NIfTI file that is damaged or cut off.") from error
    if not oriented:
        raise ValueError(f"{name} is a NIfTI file without orientation (sform_code and qform_code are 0); set one.")
    if values.ndim < 3 or values.shape[2:] != (1,) * (values.ndim - 2):
        raise ValueError(
            f"{name} is a NIfTI file of shape {values.shape}, but one axial slice (width, height, 1) is needed."
        )
    labels: np.ndarray = values.reshape(values.shape[:2])[::-1, ::-1].T
    # many programs store labels as decimal numbers
    return labels.astype(np.int64) if (labels == np.rint(labels)).all() else labels
