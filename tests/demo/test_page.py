"""The page's functions and its API endpoint, with a tiny pipeline."""

import base64
import io
import json
import threading

import numpy as np
import pytest
import torch

from lsdm_diffusers.semantic_map import find_nodules

pytest.importorskip("gradio", reason="needs the extra `demo`")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from lsdm_diffusers.demo import generation  # noqa: E402
from lsdm_diffusers.demo.jobs import SAMPLERS, make_jobs, with_malignancy  # noqa: E402
from lsdm_diffusers.demo.map_board import read_board, read_upload, stamp  # noqa: E402
from lsdm_diffusers.demo.packed_array import pack_array, unpack_array  # noqa: E402
from lsdm_diffusers.demo.request_limits import Uploads  # noqa: E402
from lsdm_diffusers.demo.slice_viewer import export_slice  # noqa: E402
from tests.page_server import CLIENT, files_below, page_pipeline, served, small_map, write_map  # noqa: E402


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


def jobs(**changes):
    arguments = {
        "semantic_map": small_map(),
        "pixel_spacing": 0.7,
        "features": None,
        "guidance_scale": 8,
        "sampler": "DDIM",
    }
    return make_jobs(**{**arguments, "num_inference_steps": 3, **changes}, multiple=32)


def test_packed_arrays_come_back_and_liars_are_refused():
    hu = np.arange(-50, 50, dtype=np.int16).reshape(10, 10)
    assert (unpack_array(json.loads(json.dumps(pack_array(hu))), "int16") == hu).all()
    packed = pack_array(hu)
    bomb = pack_array(np.zeros((1000, 1000), np.int16))
    for wrong in (
        None,
        [],
        {**packed, "dtype": "uint8"},
        {**packed, "shape": [10, 11]},
        {**packed, "shape": [10**6, 10**6]},
        {**packed, "shape": [True, 100]},
        {**packed, "data": "%%%"},
        {**packed, "data": packed["data"][:20]},
        {**bomb, "shape": [10, 10]},
    ):
        with pytest.raises(ValueError, match="picture"):
            unpack_array(wrong, "int16")


def test_board_value():
    labels = small_map()
    value = {"map": pack_array(labels), "pixel_spacing": 0.5, "features": [{"malignancy": "benign", "texture": None}]}
    semantic_map, spacing, features = read_board(value)
    assert (semantic_map == labels).all() and spacing == 0.5 and features == [{"malignancy": "benign"}]
    wrong = labels.copy()
    wrong[0, 0] = 9
    for changes, sentence in (
        ({"map": pack_array(wrong)}, "value 9"),
        ({"features": [{}, {}]}, "2 nodules are given, but the map has 1"),
        ({"features": [{"malignancy": "certainly"}]}, "certainly"),
        ({"features": [{"colour": 3}]}, "colour"),
        ({"pixel_spacing": "wide"}, "wide"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_board({**value, **changes})


def test_stamp_answers_a_map_or_a_sentence():
    request = {
        "map": pack_array(small_map()),
        "y": 80,
        "x": 80,
        "diameter_mm": 10,
        "pixel_spacing": 0.7,
        "malignancy": "benign",
        "seed": 1,
    }
    labels = unpack_array(stamp({**request, "shape": "smooth"})["map"], "uint8")
    assert [nodule.label for nodule in find_nodules(labels)] == [7, 5]
    for changes in (
        {"shape": "square"},
        {"shape": "smooth", "x": 5000},
        {"shape": "smooth", "diameter_mm": None},
        {"shape": "smooth", "map": 3},
    ):
        assert stamp({**request, **changes})["error"]


def test_upload_answers_a_map_or_a_sentence(tmp_path):
    data = base64.b64encode(write_map(tmp_path / "map.png").read_bytes()).decode()
    answer = read_upload({"name": "../../map.png", "data": data})
    assert (unpack_array(answer["map"], "uint8") == small_map()).all() and answer["message"]
    assert read_upload({"name": "map.png", "data": data[: len(data) // 8 * 4]})["error"]


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
    assert content["a slice.dcm"][128:132] == b"DICM"
    for changes in (
        {"format": "exe"},
        {"format": "png", "name": "../up"},
        {"format": "png", "window": "x"},
        {"format": "png", "hu": None},
    ):
        assert export_slice({**request, **changes})["error"]


def test_wrong_settings_are_named():
    for changes, sentence in (
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": 65}, "guidance_scale"),
        ({"sampler": "Magic"}, "Magic"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"seed": -1}, "seed"),
        ({"num_images": 9}, "num_images"),
        ({"size": 100}, "multiples of 32"),
        ({"semantic_map": small_map()[:100]}, "multiples of 32"),
    ):
        with pytest.raises(ValueError, match=sentence):
            jobs(**changes)


def test_size_scales_map_and_pixels():
    (job,) = jobs(size=64)
    assert job.semantic_map.shape == (64, 64) and job.pixel_spacing == pytest.approx(1.4)


def test_each_sampler_runs_and_leaves_the_pipeline_alone(pipe):
    before = pipe.scheduler
    for sampler in SAMPLERS:
        (job,) = jobs(sampler=sampler, features={"malignancy": "benign"})
        hu = generation.sample(pipe, job)
        assert hu.shape == (128, 128) and hu.std() > 0
    assert pipe.scheduler is before


def test_predicted_latents_are_exact_for_a_straight_path():
    z_0, noise = torch.randn(2, 1, 3, 4, 4)
    levels = [(torch.tensor(0.6), torch.tensor(0.8)), (torch.tensor(0.8), torch.tensor(0.6))]
    z_t, z_s = (alpha * z_0 + sigma * noise for alpha, sigma in levels)
    assert torch.allclose(generation.predicted_latents(z_t, z_s, *levels), z_0, atol=1e-5)


def test_run_reports_progress_previews_and_slices(pipe):
    (job,) = jobs(num_inference_steps=12, features={"malignancy": "benign"})
    *steps, generated = generation.run(pipe, [job], True, threading.Event())
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1 and len(steps) == 24
    assert sum(step.preview is not None for step in steps) >= 4
    assert generated.job == job
    assert (generated.hu == generation.sample(pipe, job)).all()
    assert (generated.unguided_hu == generation.sample(pipe, job, guided=False)).all()
    assert (generated.hu != generated.unguided_hu).any()


def test_run_stops_when_asked(pipe):
    stop = threading.Event()
    iterator = generation.run(pipe, jobs(num_inference_steps=100), False, stop)
    next(iterator)
    stop.set()
    with pytest.raises(generation.Stopped):
        list(iterator)
    closed = generation.run(pipe, jobs(num_inference_steps=100), False, threading.Event())
    next(closed)
    before = threading.active_count()
    closed.close()
    assert threading.active_count() == before - 1


def test_benign_and_malignant_of_the_same_map_and_noise():
    for malignancy in ("benign", "malignant"):
        (job,) = with_malignancy(jobs(features={"texture": 4}), malignancy)
        assert job.features == [{"texture": 4, "malignancy": malignancy}] and job.seed == 0


def test_equal_uploads_do_not_take_their_file_from_one_another(tmp_path):
    path = tmp_path / "hash" / "map.png"
    path.parent.mkdir()
    path.write_text("map")
    uploads = Uploads()
    uploads.update([str(path)])
    uploads.update([str(path)])
    uploads.done(str(path))
    assert path.exists()
    with uploads.running():  # perhaps of the same file
        uploads.done(str(path))
        assert path.exists()
        uploads.update([str(path)])
    assert path.exists()
    uploads.done(str(path))
    assert not path.parent.exists() and not uploads


def test_endpoint_is_documented(page):
    ((name, endpoint),) = Client(page[0], **CLIENT).view_api(return_format="dict")["named_endpoints"].items()
    assert name == "/generate"
    names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
    assert names == ["map_file", "features", "guidance_scale", "sampler", "num_inference_steps", "seed", "num_images"]
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
    arrays = [np.load(file) for file in files if file.endswith(".npy")]
    for hu, job in zip(arrays, jobs(features={"malignancy": "benign"}, seed=5, num_images=2), strict=True):
        assert (hu == generation.sample(pipe, job)).all()
    assert not [path for path in files_below(folder) if path.name == "map.png"]  # the upload went with the request
    for wrong, sentence in (
        ({"features": "{"}, "no JSON"),
        ({"features": '{"size": 3}'}, "size"),
        ({"seed": -2}, "seed"),
        ({"map_file": None}, "missing"),
    ):
        with pytest.raises(AppError, match=sentence):
            client.predict(**{**arguments, **wrong}, api_name="/generate")
