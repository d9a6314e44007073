"""`from_pretrained` with a Hub id: from a stand-in for the Hub, and without a network from the cache."""

import os
import subprocess
import sys

import pytest

from ..conftest import tiny_pipeline
from ..hub_stand_in import stand_in_hub

LOAD = """
import sys
from lsdm_diffusers import LSDMGuidedPipeline
pipe = LSDMGuidedPipeline.from_pretrained("user/lsdm", variant={variant!r}, local_files_only={offline})
print(type(pipe.unet).__name__, pipe.texture_classifier is not None)
"""


def load(environment, variant=None, offline=False):
    """Load in a new process, because huggingface_hub reads the endpoint when it is imported."""
    script = LOAD.format(variant=variant, offline=offline)
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repository"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder)
    pipe.save_pretrained(folder, variant="fp16")
    (folder / "unet" / "evil.py").write_text("raise SystemExit('ran downloaded code')\n")
    with stand_in_hub(tmp_path / "cache") as (environment, hub):
        hub.repositories["user/lsdm"]["main"] = {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }
        yield environment, hub


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_hub_id_then_offline_cache(hub, variant):
    environment, hub = hub
    online = load(environment, variant)
    assert online.stdout.split() == ["SpadeUNet2DModel", "True"], online.stderr[-2000:]
    fetched = [path for method, path in hub.requests if method == "GET"]
    weights = [path for path in fetched if path.endswith(".safetensors")]
    assert weights and all((".fp16." in path) == (variant == "fp16") for path in weights)
    assert not any(path.endswith(".py") for path in fetched)
    offline = load({**environment, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}, variant, offline=True)
    assert offline.stdout.split() == ["SpadeUNet2DModel", "True"], offline.stderr[-2000:]
