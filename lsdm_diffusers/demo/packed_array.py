"""Arrays as JSON between the browser and the server: zlib and base64, which lose nothing and need no files."""

import base64
import zlib
from typing import Any, Literal

import numpy as np

MAX_EDGE = 1024  # pixels of a map's height or width
COMPRESSION_LEVEL = 6  # zlib's default: smaller files would take much longer to make


def pack_array(array: np.ndarray) -> dict[str, Any]:
    """Pack an array into JSON.

    Args:
        array: any shape and number type.

    Returns:
        {"dtype", "shape", "data"}; the data are little-endian.
    """
    raw = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": base64.b64encode(zlib.compress(raw, COMPRESSION_LEVEL)).decode(),
    }


def unpack_array(packed: Any, dtype: Literal["uint8", "int16"]) -> np.ndarray:
    """Unpack a picture from a browser, which may send anything.

    Args:
        packed: what `pack_array`, or `packArray` of static/packed_array.js, gave.
        dtype: the type that its numbers must have.

    Returns:
        The array, (H, W).

    Raises:
        ValueError: for anything but such an array of at most 1024x1024 pixels. No more than those are unpacked.
    """
    fields: dict[str, Any] = packed if isinstance(packed, dict) else {}
    shape: Any = fields.get("shape")
    data: Any = fields.get("data")
    two_dimensional = isinstance(shape, list) and len(shape) == 2
    if not two_dimensional or fields.get("dtype") != dtype or not isinstance(data, str):
        raise ValueError(f"The picture is no packed array of {dtype} with two dimensions.")
    if not all(type(size) is int and 1 <= size <= MAX_EDGE for size in shape):
        raise ValueError(f"The picture has shape {shape}, but 1 to {MAX_EDGE} pixels a side are allowed.")
    num_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(base64.b64decode(data, validate=True), num_bytes + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError("The picture is damaged: it cannot be unpacked.") from error
    if len(raw) != num_bytes:
        raise ValueError(f"The picture does not hold the {num_bytes} bytes of its shape {shape}.")
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
