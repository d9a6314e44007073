"""The API endpoint `/generate`, called by gradio's client, with a tiny pipeline."""

import numpy as np
import pytest

from lsdm_diffusers.demo import generation
from lsdm_diffusers.semantic_map import read_semantic_map
from tests.page_server import CLIENT, files_below, jobs, page_pipeline, served, small_map, write_map

pytest.importorskip("gradio", reason="needs the extra `demo`")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


@pytest.fixture(scope="module")
def pipe():
    return page_pipeline()


@pytest.fixture(scope="module")
def page(tmp_path_factory, pipe):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("served")
    with served(folder, patch, pipe) as (url, _):
        yield url, folder
    patch.undo()


def test_endpoint_is_documented(page):
    ((name, endpoint),) = Client(page[0], **CLIENT).view_api(return_format="dict")["named_endpoints"].items()
    assert name == "/generate"
    names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
    assert names == [
        "map_file",
        "features",
        "guidance_scale",
        "sampler",
        "num_inference_steps",
        "seed",
        "num_images",
        "malignancy_scale",
        "malignancy_method",
        "grain",
    ]
    assert all(name in endpoint["description"] for name in names)


def test_endpoint_makes_the_slice_of_its_parameters(page, pipe, tmp_path):
    url, folder = page
    client = Client(url, **CLIENT, download_files=tmp_path)
    arguments = {
        "map_file": handle_file(write_map(tmp_path / "map.png")),
        "sampler": "DDIM",
        "num_inference_steps": 3,
        "guidance_scale": 8,
    }
    files, parameters = client.predict(
        **arguments, features='{"malignancy": "benign"}', seed=5, num_images=2, api_name="/generate"
    )
    assert [entry["seed"] for entry in parameters] == [5, 6]
    assert (
        parameters[0]["nodules"][0]["features"] == {"malignancy": "benign"}
        and parameters[0]["num_inference_steps"] == 3
    )
    (map_path,) = [file for file in files if file.endswith("semantic_map.png")]
    assert (read_semantic_map(map_path) == small_map()).all()
    arrays = [np.load(file) for file in files if file.endswith(".npy")]
    asked = {"features": {"malignancy": "benign"}, "malignancy_method": "classifier"}  # that of this checkpoint
    for hu, job in zip(arrays, jobs(**asked, seed=5, num_images=2), strict=True):
        assert (hu == generation.sample(pipe, job)[0]).all()
    assert not [path for path in files_below(folder) if path.name == "map.png"]  # the upload went with the request
    for wrong, sentence in (
        ({"features": "{"}, "no JSON"),
        ({"features": '{"size": 3}'}, "size"),
        ({"seed": -2}, "seed"),
        ({"map_file": None}, "missing"),
    ):
        with pytest.raises(AppError, match=sentence):
            client.predict(**{**arguments, **wrong}, api_name="/generate")
