"""The files that the viewer offers for download."""

import base64
import io
import json

import numpy as np
import pytest

from lsdm_diffusers.demo.packed_array import pack_array
from lsdm_diffusers.io.map_upload import read_map_upload
from tests.page_server import small_map

pytest.importorskip("gradio", reason="needs the extra `demo`")
from lsdm_diffusers.demo.slice_viewer import export_slice  # noqa: E402


def test_export_of_each_format():
    hu = np.random.default_rng(0).integers(-1000, 400, (32, 64)).astype(np.int16)
    request = {
        "hu": pack_array(hu),
        "name": "a slice",
        "pixel_spacing": 0.7,
        "window": "bone",
        "parameters": {"seed": 3},
    }
    content = {}
    for format in ("png", "npy", "nifti", "dicom", "json"):
        answer = export_slice({**request, "format": format})
        content[answer["name"]] = base64.b64decode(answer["data"])
    assert (np.load(io.BytesIO(content["a slice.npy"])) == hu).all()
    assert json.loads(content["a slice.json"])["seed"] == 3
    assert json.loads(content["a slice.json"])["semantic_map"] == "a slice-map.png"
    assert content["a slice.dcm"][128:132] == b"DICM"
    for changes in (
        {"format": "exe"},
        {"format": "png", "name": "../up"},
        {"format": "png", "window": "x"},
        {"format": "png", "hu": None},
        {"format": "map"},
    ):
        assert export_slice({**request, **changes})["error"]


def test_the_map_is_exported_as_the_upload_reads_it(tmp_path):
    labels = small_map()
    answer = export_slice(
        {"map": pack_array(labels), "name": "a slice", "format": "map", "pixel_spacing": 0.62, "parameters": {}}
    )
    assert answer["name"] == "a slice-map.png"
    path = tmp_path / answer["name"]
    path.write_bytes(base64.b64decode(answer["data"]))
    upload = read_map_upload(path)
    assert (upload.semantic_map == labels).all() and upload.pixel_spacing == 0.62
