"""The viewer: slices in Hounsfield units that the browser windows, overlays, compares, measures and downloads."""

import base64
import tempfile
import uuid
from typing import Any

import gradio as gr
import numpy as np

from ..hounsfield import WINDOWS
from ..io.export import export_ct
from ..semantic_map import find_nodules
from .browser_calls import Answer, Request, answers_errors, number_entry, static_text
from .generation import GeneratedSlice, Progress
from .map_board import label_properties
from .map_file import map_png
from .packed_array import pack_array, unpack_array


@answers_errors
def export_slice(request: Request) -> Answer:
    """Convert a slice to a file; the server keeps nothing of it.

    Args:
        request: {"hu", "map", "format", "name", "pixel_spacing", "window", "parameters"}. The format is one of
            `export_ct`, or "map" for a palette PNG of the map.

    Returns:
        {"name", "data"}, the data in base64.
    """
    parameters = request.get("parameters")
    if not isinstance(parameters, dict):
        raise ValueError("The parameters of the slice are missing.")
    window: Any = request.get("window")
    pixel_spacing = number_entry(request, "pixel_spacing")
    map_name = f"{request.get('name')}-map.png"
    if request.get("format") == "map":
        content = map_png(unpack_array(request.get("map"), "uint8"), pixel_spacing)
        return {"name": map_name, "data": base64.b64encode(content).decode()}
    with tempfile.TemporaryDirectory() as folder:
        (path,) = export_ct(
            unpack_array(request.get("hu"), "int16"),
            folder,
            str(request.get("name")),
            formats=[str(request.get("format"))],
            pixel_spacing=pixel_spacing,
            window=window,
            parameters={**parameters, "semantic_map": map_name},
        ).values()
        return {"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()}


def slice_value(generated: GeneratedSlice, map_key: str) -> dict[str, Any]:
    """A slice as the viewer takes it.

    Args:
        generated: the slice.
        map_key: key of the board's map that it was made from; the viewer marks slices of an earlier map.
    """
    job = generated.job
    nodules = [
        {"yx": nodule.centroid_yx, "diameter": 2 * float(np.sqrt(nodule.area / np.pi))}  # of a disc of that area
        for nodule in find_nodules(job.semantic_map)
    ]
    return {
        "id": uuid.uuid4().hex,  # by it the browser knows the slices that it shows already
        "title": job.title,
        "hu": pack_array(generated.hu),
        "map": pack_array(generated.drawn_map),
        "mapKey": map_key,
        "unguided": None if generated.unguided_hu is None else pack_array(generated.unguided_hu),
        "pixelSpacing": job.pixel_spacing,
        "nodules": nodules,
        "parameters": job.parameters(),
    }


def viewer_value(
    slices: list[dict[str, Any]] | None = None,
    compare: bool = False,
    progress: Progress | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """The value of a `slice_viewer`.

    Args:
        slices: those of `slice_value`.
        compare: whether the slices stand side by side.
        progress: of a run, while there is one.
        message: a sentence for the user.
    """
    shown_progress = None
    if progress is not None:
        shown_progress = {"fraction": progress.fraction, "text": progress.text, "preview": progress.preview}
    return {"slices": list(slices or []), "compare": compare, "progress": shown_progress, "message": message}


def slice_viewer(**arguments: Any) -> gr.HTML:
    """Make the viewer, whose value is a `viewer_value`.

    Args:
        arguments: those of every gradio component, such as `elem_id`.
    """
    return gr.HTML(
        value=viewer_value(),
        html_template=static_text("slice_viewer.html"),
        css_template=static_text("slice_viewer.css"),
        js_on_load=static_text("component.js", "packed_array.js", "slice_viewer.js"),
        server_functions=[export_slice],
        apply_default_css=False,
        windows=[{"name": name, "centre": centre, "width": width} for name, (centre, width) in WINDOWS.items()],
        labels=label_properties(),
        **arguments,
    )
