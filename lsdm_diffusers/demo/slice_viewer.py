"""The result: slices in Hounsfield units that the browser windows, overlays, compares and measures, and that are exported on demand."""

import base64
import tempfile
import uuid

import gradio as gr
import numpy as np

from ..hounsfield import WINDOWS
from ..io.export import export_ct
from ..labels import LABEL_NAMES, PALETTE
from ..semantic_map import find_nodules
from .map_board import STATIC, number, plain_errors
from .packed_array import pack_array, unpack_array


@plain_errors
def export_slice(request: dict) -> dict:
    """{"name", "data" in base64} of {"hu", "format", "name", "pixel_spacing", "window", "parameters"}; the server keeps nothing of it."""
    parameters = request.get("parameters")
    if not isinstance(parameters, dict):
        raise ValueError("The parameters of the slice are missing.")
    with tempfile.TemporaryDirectory() as folder:
        (path,) = export_ct(
            unpack_array(request.get("hu"), "int16"),
            folder,
            str(request.get("name")),
            formats=[request.get("format")],
            pixel_spacing=number(request, "pixel_spacing"),
            window=request.get("window"),
            parameters=parameters,
        ).values()
        return {"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()}


def slice_value(
    hu: np.ndarray, semantic_map: np.ndarray, pixel_spacing: float, title: str, parameters: dict, unguided=None
) -> dict:
    """One slice for the viewer; `unguided` is the slice of the same noise without guidance, if it was made."""
    return {
        "id": uuid.uuid4().hex,  # by which the browser knows what it shows already
        "title": title,
        "hu": pack_array(hu),
        "map": pack_array(semantic_map),
        "unguided": None if unguided is None else pack_array(unguided),
        "pixelSpacing": pixel_spacing,
        "nodules": [
            {"yx": nodule.centroid_yx, "diameter": 2 * float(np.sqrt(nodule.area / np.pi))}
            for nodule in find_nodules(semantic_map)
        ],
        "parameters": parameters,
    }


def slice_viewer(**arguments) -> gr.HTML:
    """Viewer of generated slices.

    Its value is {"slices": [...of `slice_value`], "compare": whether they stand side by side, "progress": None or {"fraction", "text",
    "preview"}, "message": a sentence or None}.
    """
    return gr.HTML(
        value={"slices": [], "compare": False, "progress": None, "message": None},
        html_template=(STATIC / "slice_viewer.html").read_text(),
        css_template=(STATIC / "slice_viewer.css").read_text(),
        js_on_load=(STATIC / "packed_array.js").read_text() + (STATIC / "slice_viewer.js").read_text(),
        server_functions=[export_slice],
        apply_default_css=False,
        windows=[{"name": name, "centre": centre, "width": width} for name, (centre, width) in WINDOWS.items()],
        labels=[{"name": name, "colour": colour.tolist()} for name, colour in zip(LABEL_NAMES, PALETTE, strict=True)],
        **arguments,
    )
