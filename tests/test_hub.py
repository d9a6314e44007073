"""`from_pretrained` with a Hub id against a small local stand-in of the Hub, and from the cache without it."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from .conftest import tiny_pipeline

REVISION = "0123456789abcdef0123456789abcdef01234567"


def handler_for(folder):
    class Hub(http.server.BaseHTTPRequestHandler):
        requested = []

        def log_message(self, *_):
            pass

        def answer(self, body, headers=()):
            self.send_response(200)
            for name, value in [("Content-Length", str(len(body))), *headers]:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
            if path.startswith("/api/models/user/lsdm/tree"):
                entries = [
                    {"type": "file", "path": name, "size": p.stat().st_size, "oid": hashlib.sha1(p.read_bytes()).hexdigest()}
                    for name, p in files.items()
                ]
                return self.answer(json.dumps(entries).encode(), [("Content-Type", "application/json")])
            if path.startswith("/api/models/user/lsdm"):
                info = {"id": "user/lsdm", "sha": REVISION, "private": False, "siblings": [{"rfilename": name} for name in files]}
                return self.answer(json.dumps(info).encode(), [("Content-Type", "application/json")])
            for prefix in (f"/user/lsdm/resolve/{REVISION}/", "/user/lsdm/resolve/main/"):
                if path.startswith(prefix) and path[len(prefix) :] in files:
                    name = path[len(prefix) :]
                    body = files[name].read_bytes()
                    if self.command == "GET":
                        type(self).requested.append(name)
                    return self.answer(body, [("ETag", f'"{hashlib.sha1(body).hexdigest()}"'), ("X-Repo-Commit", REVISION)])
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

    return Hub


LOAD = """
import sys
from lsdm_diffusers import LSDMGuidedPipeline
pipe = LSDMGuidedPipeline.from_pretrained("user/lsdm", variant={variant!r}, local_files_only={offline})
print(type(pipe.unet).__name__, pipe.texture_classifier is not None)
"""


def load(endpoint, cache, variant=None, offline=False):
    """In a process of its own: huggingface_hub reads the endpoint when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    script = LOAD.format(variant=variant, offline=offline)
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repository"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder)
    pipe.save_pretrained(folder, variant="fp16")
    (folder / "unet" / "evil.py").write_text("raise SystemExit('ran downloaded code')\n")
    handler = handler_for(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_hub_id_then_offline_cache(hub, tmp_path, variant):
    endpoint, handler = hub
    online = load(endpoint, tmp_path / "cache", variant)
    assert online.stdout.split() == ["SpadeUNet2DModel", "True"], online.stderr[-2000:]
    weights = [name for name in handler.requested if name.endswith(".safetensors")]
    assert weights and all((".fp16." in name) == (variant == "fp16") for name in weights)
    assert not any(name.endswith(".py") for name in handler.requested)
    offline = load("http://127.0.0.1:9", tmp_path / "cache", variant, offline=True)
    assert offline.stdout.split() == ["SpadeUNet2DModel", "True"], offline.stderr[-2000:]
