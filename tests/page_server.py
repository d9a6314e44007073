"""What the tests of the page share: a tiny pipeline, a small map, jobs, and the page on a port of this machine."""

import os
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lsdm_diffusers.demo.jobs import make_jobs
from lsdm_diffusers.semantic_map import semantic_map_image
from tests.conftest import tiny_pipeline, tiny_unet, tiny_vae

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
CLIENT = {"verbose": False, "httpx_kwargs": {"timeout": 120}}  # for `gradio_client.Client`; the machine may be busy


def page_pipeline():
    """Components so small that hundreds of slices are made within a minute."""
    vae = tiny_vae(block_out_channels=(4, 4, 8), norm_num_groups=2)
    return tiny_pipeline(
        vae=vae, unet=tiny_unet(block_out_channels=(8, 8), attention_levels=(False, False), norm_num_groups=4)
    )


def small_map() -> np.ndarray:
    """128x128: a body with a lung, and in it a malignant nodule."""
    labels = np.zeros((128, 128), np.uint8)
    labels[8:120, 8:120] = 1
    labels[20:108, 20:108] = 4
    labels[40:52, 40:52] = 7
    return labels


def jobs(**changes):
    """Jobs for the small map, few steps."""
    settings = {"semantic_map": small_map(), "pixel_spacing": 0.7, "features": None, "guidance_scale": 8}
    return make_jobs(**{**settings, "sampler": "DDIM", "num_inference_steps": 3, "multiple": 32, **changes})


def write_map(path: Path, labels=None) -> Path:
    semantic_map_image(small_map() if labels is None else labels).save(path)
    return path


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def served(folder: Path, monkeypatch, pipeline=None):
    """Serve the page, with its uploads and results below `folder`; yields its address and the `gr.Blocks`."""
    from lsdm_diffusers.demo.page import build_demo, launch

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    demo = build_demo(pipeline or page_pipeline())
    _, url, _ = launch(demo, server_port=port, prevent_thread_lock=True, quiet=True)
    try:
        yield url.rstrip("/"), demo
    finally:
        demo.close(verbose=False)
