"""The board: a semantic map to draw, upload or place nodules in, and the features that each nodule shall have."""

import base64
import re
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image

from ..ct_limits import PIXEL_SPACING_MM
from ..io.map_upload import read_map_upload
from ..io.nodule_stamp import DIAMETER_MM, SHAPES, NoduleDoesNotFit, stamp_nodule
from ..labels import LABEL_NAMES, PALETTE, SemanticLabel
from ..nodule_features import HIGHEST_RATING, NODULE_FEATURES
from ..semantic_map import read_semantic_map
from .browser_calls import Answer, Request, answers_errors, number_entry, static_text
from .example_maps import example_maps
from .jobs import check_features
from .packed_array import pack_array, unpack_array

MAX_UPLOAD = 16 * 2**20  # bytes; a 1024x1024 slice of HU in float64 has half of it
MAX_KEY = 80  # letters; it comes back with each slice
MALIGNANCY_OF_LABEL = {SemanticLabel.NODULE_BENIGN: "benign", SemanticLabel.NODULE_MALIGNANT: "malignant"}


def place_sentence(labels: np.ndarray, y: float, x: float, diameter_mm: float) -> str:
    """Say to the person who clicked at row y and column x of a map (H, W) why no nodule can be there."""
    height, width = labels.shape
    row, column = min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)
    label = labels[row, column]
    if label >= SemanticLabel.NODULE_BENIGN:
        return "There is a nodule already. Click on a free place of a lung, the blue area."
    if label != SemanticLabel.LUNG:
        return "That place is outside the lungs. Click on a lung, the blue area."
    return (
        f"A nodule of {diameter_mm:g} mm does not fit there: most of it must lie in lung, all of it in the body, and "
        "it must not touch another nodule. Take a smaller diameter, or click elsewhere."
    )


@answers_errors
def stamp(request: Request) -> Answer:
    """Place a nodule in a map.

    Args:
        request: {"map", "y", "x", "diameter_mm", "pixel_spacing", "shape", "malignancy", "seed"}.

    Returns:
        {"map"}.
    """
    shape: Any = request.get("shape")
    malignancy: Any = request.get("malignancy")
    labels = read_semantic_map(unpack_array(request.get("map"), "uint8"))
    y, x, diameter_mm = (number_entry(request, name) for name in ("y", "x", "diameter_mm"))
    try:
        stamped = stamp_nodule(
            labels,
            (y, x),
            diameter_mm,
            number_entry(request, "pixel_spacing"),
            shape=shape,
            malignancy=malignancy,
            seed=int(number_entry(request, "seed")),
        )
    except NoduleDoesNotFit as error:
        raise ValueError(place_sentence(labels, y, x, diameter_mm)) from error
    return {"map": pack_array(stamped)}


@answers_errors
def read_upload(request: Request) -> Answer:
    """Read the map of an uploaded file, which is on disk only while it is read.

    Args:
        request: {"name", "data"}, the data in base64.

    Returns:
        {"map", "pixel_spacing", "message"}.
    """
    data = request.get("data")
    if (
        not isinstance(data, str) or len(data) > MAX_UPLOAD * 4 / 3 + 4
    ):  # base64 has 4 letters for 3 bytes, and padding
        raise ValueError(f"The file has more than the {MAX_UPLOAD // 2**20} MiB allowed.")
    suffix = Path(str(request.get("name"))).suffix.lower()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("upload" + (suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ""))
        path.write_bytes(base64.b64decode(data, validate=True))
        upload = read_map_upload(path, max_bytes=MAX_UPLOAD)
    return {"map": pack_array(upload.semantic_map), "pixel_spacing": upload.pixel_spacing, "message": upload.message}


def read_board(value: Any) -> tuple[np.ndarray, float, list[dict[str, Any]]]:
    """Read the value of a `map_board`.

    Returns:
        The map (H, W), the edge of a pixel in mm, and a dict of features for each nodule.

    Raises:
        ValueError: if the value is none of a board.
    """
    if not isinstance(value, dict):
        raise ValueError("The board is empty; choose an example map or upload one.")
    semantic_map = read_semantic_map(unpack_array(value.get("map"), "uint8"))
    return semantic_map, number_entry(value, "pixel_spacing"), check_features(value.get("features"), semantic_map)


def board_key(value: Any) -> str:
    """The key that a `map_board` gives its map: another map has another key."""
    return str(value.get("key"))[:MAX_KEY] if isinstance(value, dict) else ""


def label_properties() -> list[dict[str, Any]]:
    """Name and colour of each label, for the browser."""
    return [{"name": name, "colour": colour.tolist()} for name, colour in zip(LABEL_NAMES, PALETTE, strict=True)]


def read_example(title: str, path: Path) -> dict[str, Any]:
    """An example map for the browser."""
    with PIL.Image.open(path) as image:
        return {
            "title": title,
            "map": pack_array(np.asarray(image)),
            "pixel_spacing": float(image.info["pixel_spacing_mm"]),
        }


def map_board(**arguments: Any) -> gr.HTML:
    """Make the board.

    Its value is {"map": packed labels, "key": text that tells maps apart, "pixel_spacing": mm, "features": a dict for
    each nodule, or None}.

    Args:
        arguments: those of every gradio component, such as `elem_id`.
    """
    examples = [read_example(title, path) for title, path in example_maps().items()]
    return gr.HTML(
        value={"map": examples[0]["map"], "pixel_spacing": examples[0]["pixel_spacing"], "features": None},
        html_template=static_text("map_board.html"),
        css_template=static_text("map_board.css"),
        js_on_load=static_text("component.js", "packed_array.js", "map_board.js"),
        server_functions=[stamp, read_upload],
        apply_default_css=False,
        examples=examples,
        labels=label_properties(),
        lungLabel=int(SemanticLabel.LUNG),
        firstNoduleLabel=int(SemanticLabel.NODULE_BENIGN),
        malignancyOfLabel={str(int(label)): malignancy for label, malignancy in MALIGNANCY_OF_LABEL.items()},
        ratedFeatures=[feature for feature in NODULE_FEATURES if feature != "malignancy"],
        highestRating=HIGHEST_RATING,
        shapes=SHAPES,
        diameters=DIAMETER_MM,
        pixelSpacings=PIXEL_SPACING_MM,
        maxUpload=MAX_UPLOAD,
        **arguments,
    )
