"""Arrays as JSON between the browser and the server: zlib and base64, without files and without an image format's roundings."""

import base64
import zlib

import numpy as np

MAX_EDGE = 1024  # pixels of a map's height or width


def pack_array(array: np.ndarray) -> dict:
    """{"dtype", "shape", "data"} of an array, little-endian."""
    raw = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": base64.b64encode(zlib.compress(raw, 6)).decode(),
    }


def unpack_array(packed, dtype: str) -> np.ndarray:
    """The array (H, W) of `pack_array`, from a browser that need not be honest.

    Args:
        packed: what `pack_array`, or `packArray` in static/packed_array.js, gave.
        dtype: the dtype it must have: "uint8" or "int16".

    Raises:
        ValueError: for anything else than such an array of at most 1024x1024 pixels; no more than those are unpacked.
    """
    shape = packed.get("shape") if isinstance(packed, dict) else None
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or packed.get("dtype") != dtype
        or not isinstance(packed.get("data"), str)
    ):
        raise ValueError(f"The picture is no packed array of {dtype} with two dimensions.")
    if not all(type(size) is int and 1 <= size <= MAX_EDGE for size in shape):
        raise ValueError(f"The picture has shape {shape}, but 1 to {MAX_EDGE} pixels a side are allowed.")
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(base64.b64decode(packed["data"], validate=True), size + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError("The picture is damaged: it cannot be unpacked.") from error
    if len(raw) != size:
        raise ValueError(f"The picture holds other than the {size} bytes of its shape {shape}.")
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
