"""Load and misuse of the page: many clients at once, memory, bad uploads, and reading what is not served."""

import base64
import io
import json
import struct
import tempfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pytest

pytest.importorskip("gradio", reason="needs the extra `demo`")
import httpx  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from lsdm_diffusers.demo import generation  # noqa: E402
from lsdm_diffusers.demo.map_board import MAX_UPLOAD  # noqa: E402
from lsdm_diffusers.demo.packed_array import pack_array  # noqa: E402
from tests.page_server import CLIENT, files_below, jobs, page_pipeline, served, write_map  # noqa: E402

CLIENTS, REQUESTS = 20, 200
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """(url, blocks, pipeline, folder of files); everything temporary of this process lies in that folder."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("served")
    patch.setattr(tempfile, "tempdir", str(folder))
    pipe = page_pipeline()
    with served(folder / "gradio", patch, pipe) as (url, blocks):
        yield url, blocks, pipe, folder
    patch.undo()


def expected(pipe, seed):
    (job,) = jobs(guidance_scale=0, num_inference_steps=1, seed=seed)
    return generation.sample(pipe, job)[0]


def arguments(tmp_path, **changes):
    usual = {
        "map_file": handle_file(write_map(tmp_path / "map.png")),
        "guidance_scale": 0,
        "sampler": "DDIM",
        "num_inference_steps": 1,
    }
    return {**usual, "api_name": "/generate", **changes}


def server_call(page, function, data):
    """Call a function of the board or the viewer as the browser does."""
    url, blocks, *_ = page
    components = [block for block in blocks.blocks.values() if getattr(block, "server_fns", None)]
    named = [component for component in components if function in [known.__name__ for known in component.server_fns]]
    body = {"data": data, "component_id": (named or components)[0]._id, "fn_name": function, "session_hash": "test"}
    return httpx.post(f"{url}/gradio_api/component_server", json=body, timeout=60)


def test_many_clients_at_once_each_get_their_own_slice(page, tmp_path):
    url, _, pipe, folder = page
    clients = [Client(url, **CLIENT, download_files=str(tmp_path / str(seed))) for seed in range(CLIENTS)]
    call = arguments(tmp_path)
    start = threading.Barrier(CLIENTS)

    def ask(seed):
        start.wait()
        files, parameters = clients[seed].predict(**call, seed=seed)
        return np.load(next(file for file in files if file.endswith(".npy"))), parameters[0]["seed"]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(CLIENTS)))
    for seed, (hu, answered_seed) in enumerate(answers):
        assert answered_seed == seed and (hu == expected(pipe, seed)).all()
    assert not [path for path in files_below(folder) if path.name == "map.png"]  # no upload outlives its request


def test_memory_stays_flat(page, tmp_path):
    client = Client(page[0], **CLIENT, download_files=False)
    call = arguments(tmp_path)
    process, memory = psutil.Process(), []
    for request in range(REQUESTS):
        client.predict(**call, seed=request)
        memory.append(process.memory_info().rss / 2**20)
    # the first quarter fills caches; a slice with its files is 0.1 MiB, a leaked latent or session more
    assert np.mean(memory[-20:]) - np.mean(memory[REQUESTS // 4 : REQUESTS // 4 + 20]) < 15


def png(width, height, rows=b"", color_type=0, bit_depth=8):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bad_files(tmp_path):
    whole = write_map(tmp_path / "whole.png").read_bytes()
    wrong_label = io.BytesIO()
    PIL.Image.fromarray(np.full((128, 128), 9, np.uint8)).save(wrong_label, format="png")
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    return {
        "truncated.png": whole[: len(whole) // 2],
        "wrong-label.png": wrong_label.getvalue(),
        "no-image.png": b"this is text",
        "empty.png": b"",
        "huge-when-unpacked.png": png(30000, 30000, bytes(10**6)),
        "more-than-it-says.png": png(128, 128, bytes(10**8)),
        "pickle.npy": pickled.getvalue(),
        "program.html": b"<script>alert(1)</script>",
        "half.dcm": bytes(128) + b"DICM" + bytes(50),
    }


def test_bad_uploads_get_a_sentence_and_leave_no_file(page, tmp_path):
    client = Client(page[0], **CLIENT)
    before = files_below(page[3])
    for name, content in bad_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        if content:
            with pytest.raises(AppError) as error:
                client.predict(**arguments(tmp_path, map_file=handle_file(path)))
            assert 10 < len(str(error.value)) < 400 and "Traceback" not in str(error.value), name
        answer = server_call(page, "read_upload", {"name": name, "data": base64.b64encode(content).decode()}).json()
        assert 10 < len(answer["error"]) < 400, name
        assert files_below(page[3]) == before, name


def test_names_of_uploads_lead_nowhere(page, tmp_path):
    outside = page[3] / "outside.png"
    data = base64.b64encode(write_map(tmp_path / "map.png").read_bytes()).decode()
    for name in ("../../outside.png", str(outside), "..\\outside.png", "outside.png/../../x", "\0", "a" * 5000):
        assert "map" in server_call(page, "read_upload", {"name": name, "data": data}).json()
        answer = httpx.post(
            f"{page[0]}/gradio_api/upload", files={"files": (name.replace("\0", "0"), b"text")}, timeout=60
        )
        for stored in answer.json() if answer.status_code == 200 else ():
            assert Path(stored).resolve().is_relative_to(page[3] / "gradio")
    assert not outside.exists() and not (page[3].parent / "outside.png").exists()


def test_oversized_requests_are_refused_before_they_are_stored(page):
    url, *_, folder = page
    before = files_below(folder)
    answer = httpx.post(f"{url}/gradio_api/upload", files={"files": ("big.png", bytes(MAX_UPLOAD + 1000))}, timeout=60)
    assert answer.status_code == 413
    body = b'{"data": "' + b"0" * (2 * MAX_UPLOAD) + b'"}'
    for content in (
        body,
        iter([body[: len(body) // 2], body[len(body) // 2 :], b" "]),
    ):  # with and without a content length
        try:
            answer = httpx.post(
                f"{url}/gradio_api/component_server",
                content=content,
                headers={"content-type": "application/json"},
                timeout=60,
            )
            assert answer.status_code == 413
        except httpx.WriteError:
            pass  # the server hung up while it was being written to
    assert files_below(folder) == before
    assert httpx.get(url, timeout=60).status_code == 200


def test_nothing_outside_the_served_folder_can_be_read(page, tmp_path):
    url, *_, folder = page
    secret = folder / "secret.txt"
    secret.write_text("the secret")
    try:
        for place in (
            "/etc/passwd",
            str(secret),
            f"{folder}/gradio/../secret.txt",
            "../secret.txt",
            "..%2f..%2fetc%2fpasswd",
            f"file://{secret}",
        ):
            for route in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "gradio_api/stream/"):
                answer = httpx.get(f"{url}/{route}{place}", timeout=60)
                assert "the secret" not in answer.text and "root:" not in answer.text, f"{route}{place}"
        client = Client(url, **CLIENT, download_files=False)
        for path in ("/etc/passwd", str(secret)):
            with pytest.raises(Exception, match="") as error:
                client.predict(**arguments(tmp_path, map_file={"path": path, "meta": {"_type": "gradio.FileData"}}))
            assert "the secret" not in str(error.value) and "root:" not in str(error.value)
        for function in ("__init__", "launch", "postprocess", "stamp.__globals__"):
            assert server_call(page, function, {}).status_code >= 400
    finally:
        secret.unlink()


def test_functions_of_the_page_answer_nonsense_with_a_sentence(page):
    bomb = {"dtype": "uint8", "shape": [16, 16], "data": pack_array(np.zeros((1024, 1024), np.uint8))["data"]}
    for function in ("stamp", "read_upload", "export_slice"):
        for data in (
            None,
            [],
            "text",
            {},
            {"map": bomb, "hu": bomb, "data": "%", "parameters": {}},
            json.loads('{"map": {"shape": [1e99, 1]}}'),
        ):
            answer = server_call(page, function, data)
            assert answer.status_code == 200 and set(answer.json()) == {"error"}, (function, data)
