"""The board: a semantic map that is drawn, uploaded or stamped with nodules in the browser, and the features wanted of each nodule."""

import base64
import functools
import logging
import re
import tempfile
from pathlib import Path

import gradio as gr
import numpy as np
import PIL.Image

from ..io.map_upload import read_map_upload
from ..io.nodule_stamp import DIAMETER_MM, SHAPES, stamp_nodule
from ..labels import LABEL_NAMES, PALETTE
from ..nodule_features import NODULE_FEATURES, feature_target
from ..semantic_map import find_nodules, read_semantic_map
from .example_maps import example_maps
from .packed_array import pack_array, unpack_array

STATIC = Path(__file__).parent / "static"
MAX_UPLOAD = 16 * 2**20  # bytes; a 1024x1024 slice of float64 HU is half of it
logger = logging.getLogger(__name__)


def plain_errors(function):
    """For functions the browser calls: a ValueError becomes {"error": its sentence}; anything unforeseen is logged and says no more."""

    @functools.wraps(function)
    def answer(request):
        try:
            return function(request if isinstance(request, dict) else {})
        except ValueError as error:
            return {"error": str(error)}
        except Exception:
            logger.exception("%s failed", function.__name__)
            return {"error": "This did not work; the server's log has the reason."}

    return answer


def number(request: dict, name: str) -> float:
    """The entry `name` of a request as a finite float."""
    value = request.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ValueError(f"`{name}` is {value!r}, but a number is needed.")
    return float(value)


@plain_errors
def stamp(request: dict) -> dict:
    """{"map"} with a nodule more, of {"map", "y", "x", "diameter_mm", "pixel_spacing", "shape", "malignancy", "seed"}."""
    stamped = stamp_nodule(
        read_semantic_map(unpack_array(request.get("map"), "uint8")),
        (number(request, "y"), number(request, "x")),
        number(request, "diameter_mm"),
        number(request, "pixel_spacing"),
        shape=request.get("shape"),
        malignancy=request.get("malignancy"),
        seed=int(number(request, "seed")),
    )
    return {"map": pack_array(stamped)}


@plain_errors
def read_upload(request: dict) -> dict:
    """{"map", "pixel_spacing", "message"} of the file {"name", "data" in base64}, which is on disk only while it is read."""
    data = request.get("data")
    if not isinstance(data, str) or len(data) > MAX_UPLOAD * 4 / 3 + 4:
        raise ValueError(f"The file has more than the {MAX_UPLOAD // 2**20} MiB allowed.")
    suffix = Path(str(request.get("name"))).suffix.lower()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("upload" + (suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else ""))
        path.write_bytes(base64.b64decode(data, validate=True))
        upload = read_map_upload(path, max_bytes=MAX_UPLOAD)
    return {"map": pack_array(upload.semantic_map), "pixel_spacing": upload.pixel_spacing, "message": upload.message}


def read_board(value) -> tuple[np.ndarray, float, list[dict]]:
    """The map (H, W), the edge of a pixel in mm, and a dict of features for each nodule, from the value of a `map_board`.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, dict):
        raise ValueError("The board is empty; choose an example map or upload one.")
    semantic_map = read_semantic_map(unpack_array(value.get("map"), "uint8"))
    return semantic_map, number(value, "pixel_spacing"), check_features(value.get("features"), semantic_map)


def check_features(features, semantic_map: np.ndarray) -> list[dict]:
    """One dict of features for each nodule of the map; a dict stands for all of them, None for no guidance."""
    count = len(find_nodules(semantic_map))
    if features is None or isinstance(features, dict):
        features = [features or {}] * count
    if not isinstance(features, list) or not all(isinstance(of_nodule, dict) for of_nodule in features):
        raise ValueError("The features are no dict, nor a list with a dict for each nodule.")
    if len(features) != count:
        raise ValueError(f"Features of {len(features)} nodules are given, but the map has {count}.")
    chosen = [{feature: value for feature, value in of_nodule.items() if value is not None} for of_nodule in features]
    for of_nodule in chosen:
        for feature, value in of_nodule.items():
            feature_target(feature, value)
    return chosen


def map_board(**arguments) -> gr.HTML:
    """Board of a semantic map; its value is {"map": packed labels, "pixel_spacing": mm, "features": a dict for each nodule}."""
    examples = []
    for title, path in example_maps().items():
        with PIL.Image.open(path) as image:
            examples.append(
                {
                    "title": title,
                    "map": pack_array(np.asarray(image)),
                    "pixel_spacing": float(image.text["pixel_spacing_mm"]),
                }
            )
    return gr.HTML(
        value={"map": examples[0]["map"], "pixel_spacing": examples[0]["pixel_spacing"], "features": None},
        html_template=(STATIC / "map_board.html").read_text(),
        css_template=(STATIC / "map_board.css").read_text(),
        js_on_load=(STATIC / "packed_array.js").read_text() + (STATIC / "map_board.js").read_text(),
        server_functions=[stamp, read_upload],
        apply_default_css=False,
        examples=examples,
        labels=[{"name": name, "colour": colour.tolist()} for name, colour in zip(LABEL_NAMES, PALETTE, strict=True)],
        features=[feature for feature in NODULE_FEATURES if feature != "malignancy"],
        shapes=SHAPES,
        diameters=DIAMETER_MM,
        maxUpload=MAX_UPLOAD,
        **arguments,
    )
