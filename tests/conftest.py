"""Tiny real components, a small dataset and the run of a training script, shared by the tests."""

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier, SpadeGenerator, SpadeUNet2DModel
from lsdm_diffusers.labels import NUM_LABELS
from lsdm_diffusers.nodule_features import NODULE_FEATURES

from .tiny_dataset import write_tiny_dataset

ROOT = Path(__file__).parent.parent
TRAINING = ROOT / "training"
RATINGS = NODULE_FEATURES
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    torch.set_num_threads(1)

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0205}


def tiny_unet(**changes):
    config = {
        "block_out_channels": (16, 32),
        "attention_levels": (False, True),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "spade_hidden_channels": 8,
    }
    torch.manual_seed(0)
    return SpadeUNet2DModel(**{**config, **changes}).eval()


def tiny_generator(**changes):
    config = {"block_out_channels": (8, 16, 16), "spade_hidden_channels": 8, "norm_num_groups": 4}
    torch.manual_seed(0)
    return SpadeGenerator(**{**config, **changes}).eval()


def tiny_classifier(feature, objective):
    torch.manual_seed(1)
    return NoduleClassifier(
        feature, objective, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8
    ).eval()


def tiny_vae(**changes):
    config = {
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": (8, 8, 16),
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "scaling_factor": 0.5,
    }
    torch.manual_seed(2)
    return AutoencoderKL(
        in_channels=1, out_channels=1, layers_per_block=1, latent_channels=3, **{**config, **changes}
    ).eval()


def tiny_pipeline(**changes):
    components = {
        "vae": tiny_vae(),
        "unet": tiny_unet(),
        "scheduler": DDIMScheduler(clip_sample=False, **BETAS),
        "malignancy_classifier": tiny_classifier("malignancy", "classification"),
        "lobulation_classifier": tiny_classifier("lobulation", "regression"),
        "spiculation_classifier": tiny_classifier("spiculation", "regression"),
        "texture_classifier": tiny_classifier("texture", "regression"),
    }
    pipe = LSDMGuidedPipeline(**{**components, **changes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture
def semantic_map():
    """96x128: lung with a nodule in the top left corner (malignant) and one inside (benign)."""
    labels = np.full((96, 128), 4, dtype=np.uint8)
    labels[:20] = 1
    labels[0:6, 0:6] = 7
    labels[50:60, 70:82] = 5
    return labels


@pytest.fixture
def all_labels():
    """A map (24, 32) in which every label occurs."""
    return np.random.default_rng(0).permutation(np.arange(24 * 32) % NUM_LABELS).reshape(24, 32).astype(np.uint8)


def sample(pipe, semantic_map, features=None, seed=1, **arguments):
    """HU of a short run from a fixed seed."""
    arguments = {
        "num_inference_steps": 3,
        "output_type": "hu",
        "generator": torch.Generator().manual_seed(seed),
        **arguments,
    }
    return pipe(semantic_map, features, **arguments).images


def assert_same_weights(first, second):
    """Compare two safetensors files bit by bit."""
    first, second = load_file(first), load_file(second)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=0, rtol=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Slices of 96x96 pixels and nodule crops, with the columns of the small recipe's dataset."""
    folder = tmp_path_factory.mktemp("dataset")
    write_tiny_dataset(folder)
    return folder


@pytest.fixture
def no_pause(monkeypatch):
    """A shuffled stream of datasets 5 pauses for five seconds at the end of each pass."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def train(monkeypatch, tmp_path, no_pause):
    """Run a script's command line in this process, as `launch` does in one of its own: that spares the imports."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(script, *arguments):
        for state in (AcceleratorState, GradientState):
            state._reset_state(*([True] if state is AcceleratorState else []))
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(TRAINING / script), run_name="__main__")

    yield run
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)
