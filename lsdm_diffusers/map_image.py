"""Labels from a picture of a semantic map: grey values, colours of the legend, or indices of a palette."""

import cv2
import numpy as np
import PIL.Image
from scipy.ndimage import distance_transform_edt

from .labels import NUM_LABELS, PALETTE, SemanticLabel

MAX_COLOUR_DISTANCE = 8  # of 255 in each channel: how far a conversion of the file may move a colour of the legend
MAX_OTHER_COLOURS = 0.3  # share of what is drawn; antialiased edges have less, a photograph has more
FLAT_EDGE = 5  # pixels; a square of one colour is no antialiased edge
LABEL_TABLES = (  # red, green, blue on or off: how other programs colour labels 0..7
    ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)),  # primaries first
    ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)),  # as in PASCAL VOC
)
GREY_TOLERANCE = 2  # of 255 in each channel, for the steps of a ramp
JPEG_FORMATS = ("JPEG", "MPO")  # as Pillow names them; MPO is the JPEG of some cameras
JPEG_REFUSAL = (
    "is a JPEG, which blurs the labels at each edge; save the map as PNG in the program that drew it, or export the "
    "CT slice as DICOM from the viewer (a PNG made from the JPEG stays blurred)."
)


def stored_bits(image: PIL.Image.Image) -> int:
    """Bits of a channel in the file of an image, which Pillow tells until the pixels are loaded; 8 if unknown."""
    tile = getattr(image, "tile", None)
    raw_mode = str(tile[0][3]) if tile else ""  # such as "L;4" or "RGB;16B"
    for bits in (16, 4, 2):
        if f";{bits}" in raw_mode:
            return bits
    return 8


def labels_from_image(image: PIL.Image.Image, name: str = "`semantic_map`", bits: int | None = None) -> np.ndarray:
    """Read the labels of a picture.

    * A grey picture: the grey value is the label.
    * A colour picture: the label is the one that has the colour in `PALETTE`. What is transparent is background.
    * A palette picture: its colours count as in a colour picture, since the indices of a paint program follow no
      order. The indices are the labels only where the palette plainly is a list of labels, see `_is_label_table`.

    Args:
        image: of mode "L", "LA", "I;16", "I", "P", "RGB" or "RGBA".
        name: how a refusal names the image.
        bits: of a channel in the file; None asks the image, which knows until its pixels are loaded.

    Returns:
        Integers (H, W). Those of a grey picture are not checked.

    Raises:
        ValueError: for a JPEG, another mode, or colours that are not those of the legend.
    """
    if image.format in JPEG_FORMATS:
        raise ValueError(f"{name} {JPEG_REFUSAL}")
    bits = bits or stored_bits(image)
    if image.mode == "P":
        return _palette_labels(image, name)
    if image.mode in ("RGB", "RGBA", "LA"):
        rgb = _over_black(image)
        if (rgb != rgb[..., :1]).any():
            return labels_from_colours(rgb, name)
        if bits == 16:  # Pillow keeps the high bytes only
            raise ValueError(f"{name} has grey values in colour channels of 16 bits, but 8 bits a channel are needed.")
        return rgb[..., 0]
    if image.mode not in ("L", "I") and not image.mode.startswith("I;16"):
        raise ValueError(
            f'{name} is an image of mode "{image.mode}", but a grey image (mode "L" or "P", the label as value) or '
            "one in the colours of the legend is needed."
        )
    values = np.asarray(image)
    return values // (255 // (2**bits - 1)) if bits < 8 else values  # Pillow spreads few bits over 0..255


def _over_black(image: PIL.Image.Image) -> np.ndarray:
    """Colours (H, W, 3) before the black of the background."""
    black = PIL.Image.new("RGBA", image.size, (0, 0, 0, 255))
    return np.asarray(PIL.Image.alpha_composite(black, image.convert("RGBA")).convert("RGB"))


def _is_label_table(palette: np.ndarray) -> bool:
    """Whether a palette (n, 3) shows labels without meaning by its colours: the index is the label then.

    Such a palette is empty, or its first eight colours are an even grey ramp from black (also all black), or the
    eight basic colours in one of the orders in `LABEL_TABLES`.
    """
    if len(palette) < NUM_LABELS:
        return len(palette) == 0
    first, index = palette[:NUM_LABELS].astype(int), np.arange(NUM_LABELS)
    ramp = np.rint(first[-1, 0] * index / index[-1])
    if np.abs(first - ramp[:, None]).max() <= GREY_TOLERANCE:
        return True
    return any((first == first.max() * np.array(table)).all() for table in LABEL_TABLES)


def _palette_labels(image: PIL.Image.Image, name: str) -> np.ndarray:
    indices = np.asarray(image)
    palette = np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    used = palette[np.unique(indices)] if indices.max() < len(palette) else palette[:0]
    distinct = len(used) > 0 and len(np.unique(used, axis=0)) == len(
        used
    )  # else the colours say less than the indices
    if distinct and (used == used[:, :1]).all() and used.max() < NUM_LABELS:
        return palette[indices, 0]
    if indices.max() < NUM_LABELS and _is_label_table(palette):
        return indices
    if distinct:
        try:
            return labels_from_colours(_over_black(image), name)
        except ValueError:
            pass
    raise ValueError(
        f"{name} has a palette that is neither that of the legend nor grey, so its indices need not be labels; "
        "save it as a grey PNG with the label as value, or in the colours of the legend."
    )


def labels_from_colours(rgb: np.ndarray, name: str = "`rgb`") -> np.ndarray:
    """Turn a drawing in the colours of `PALETTE` into labels.

    A pixel of another colour, as on the antialiased edge of a brush, takes the nearest of the colours that touch it.
    The nearest of all eight would often put a third label between two: high density blended with soft tissue has
    nearly the colour of the body.

    Args:
        rgb: the drawing, (H, W, 3), 0..255.
        name: how a refusal names the drawing.

    Returns:
        `uint8` labels 0..7, (H, W).

    Raises:
        ValueError: if more than three tenths of what is drawn has other colours, or a square of 5x5 pixels has one.
    """
    codes, code_index = np.unique(
        rgb.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32), return_inverse=True
    )
    code_index = code_index.reshape(rgb.shape[:2])
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.int32)
    squared_distances = ((colours[:, None] - PALETTE.astype(np.int32)) ** 2).sum(axis=2)  # (colours, labels)
    labels = np.argmin(squared_distances, axis=1).astype(np.uint8)[code_index]
    clear = (np.min(squared_distances, axis=1) <= 3 * MAX_COLOUR_DISTANCE**2)[code_index]
    drawn = ~(clear & (labels == SemanticLabel.BACKGROUND))
    if (~clear).sum() > MAX_OTHER_COLOURS * drawn.sum():
        raise ValueError(
            f"{name} is a colour picture and not a semantic map: {clear.mean():.0%} of it has colours of the legend."
        )
    if clear.all():
        return labels

    square, code_values = np.ones((FLAT_EDGE, FLAT_EDGE), np.uint8), code_index.astype(np.float32)
    flat = ~clear & (cv2.erode(code_values, square) == cv2.dilate(code_values, square))
    if flat.any():
        row, column = np.argwhere(flat)[0]
        colour = tuple(int(value) for value in rgb[row, column])
        raise ValueError(
            f"{name} has the colour {colour} at row {row}, column {column}, which is no colour of the legend."
        )

    # inside a broad edge no clear pixel touches: such a pixel takes the label of the nearest clear one
    nearest_row, nearest_column = distance_transform_edt(~clear, return_distances=False, return_indices=True)
    result = labels[nearest_row, nearest_column]
    unclear = np.nonzero(~clear)
    candidates = squared_distances[code_index[unclear]]
    untouched = np.iinfo(np.int32).max
    for label in range(NUM_LABELS):
        touched = cv2.dilate((clear & (labels == label)).astype(np.uint8), np.ones((3, 3), np.uint8))
        candidates[touched[unclear] == 0, label] = untouched
    touching = candidates.min(axis=1) < untouched
    result[tuple(index[touching] for index in unclear)] = candidates[touching].argmin(axis=1)
    return result
