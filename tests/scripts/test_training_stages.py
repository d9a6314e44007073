"""What all training scripts have in common, through their command lines."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import load_dataset
from safetensors.torch import load_file

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier
from lsdm_diffusers.data.dataset import nodule_crops
from lsdm_diffusers.hounsfield import hu_from_scaled

from ..conftest import ROOT, TRAINING, assert_same_weights
from .conftest import SIZES, WEIGHTS, WITHOUT_VAE, command_line, launch

pytestmark = pytest.mark.slow

RUN_SCRIPTS = """
import json, runpy, sys
from accelerate.state import AcceleratorState, GradientState
import lsdm_diffusers
for command in json.loads(sys.argv[1]):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
print(lsdm_diffusers.__file__)
"""


def test_stages_train_on_a_prepared_dataset(tmp_path, train, prepared):
    flags = ["--max_train_steps", 1, "--train_batch_size", 2, "--dataset_name", prepared]
    vae, texture, unet = (tmp_path / name for name in ("vae", "texture", "unet"))
    train("train_autoencoder.py", *flags, *SIZES["train_autoencoder.py"], "--output_dir", vae)
    flags += ["--pretrained_vae", vae]
    train("train_classifier.py", *flags, "--feature", "texture", "--output_dir", texture)
    assert NoduleClassifier.from_pretrained(texture).config.objective == "regression"
    train("train_unet.py", *flags, *SIZES["train_unet.py"], "--output_dir", unet)
    assert LSDMGuidedPipeline.from_pretrained(unet / "pipeline").vae.config.latent_channels == 3


def test_crops_are_cut_around_nodules(prepared):
    crops = list(nodule_crops(load_dataset(str(prepared), split="train")))
    assert [nodule["malignancy"] for _, nodule in crops] == [1, 2, 3, 4, 5]
    for crop, _ in crops:  # moved inside the frame: rows 0..63, columns 32..95
        hu = hu_from_scaled(crop)
        assert crop.shape == (64, 64)
        assert np.abs(hu[2:10, 48:58]).max() < 40 and hu[20:].max() < -800


@pytest.mark.parametrize("script", ["train_classifier.py", "train_unet.py"])
def test_a_stream_trains_the_same_weights(tmp_path, train, stage_flags, script):
    """These scripts encode the rows once, from the disk or from a stream."""
    flags = [*stage_flags(script), "--max_train_steps", 2]
    train(script, *flags, "--output_dir", tmp_path / "table")
    train(script, *flags, "--output_dir", tmp_path / "stream", "--streaming")
    assert_same_weights(tmp_path / "table" / WEIGHTS[script], tmp_path / "stream" / WEIGHTS[script])


@pytest.mark.parametrize("script", WITHOUT_VAE)
def test_a_streamed_run_resumes_where_it_was(tmp_path, train, dataset, script):
    flags = [*SIZES[script], "--dataset_name", dataset, "--streaming", "--train_batch_size", 1]
    flags += ["--max_train_steps", 6]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(script, *flags, "--output_dir", whole, "--checkpointing_steps", 3)
    resumed.mkdir()
    (whole / "checkpoint-3").rename(resumed / "checkpoint-3")
    train(script, *flags, "--output_dir", resumed, "--resume_from_checkpoint", "latest")
    assert_same_weights(whole / WEIGHTS[script], resumed / WEIGHTS[script])


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("train_autoencoder.py", "--lr_scheduler cosine --layers_per_block 2 --kl_weight 1e-3"),
        ("train_classifier.py", "--lr_scheduler constant_with_warmup --objective regression"),
        ("train_unet.py", "--lr_scheduler linear --spade_blocks none --nodule_weight 4"),
    ],
)
def test_flags_that_all_scripts_share(tmp_path, train, dataset, vae, script, flags):
    common = (
        "--train_batch_size 2 --max_train_steps 2 --max_train_samples 11 --mixed_precision bf16 --max_grad_norm 0.5"
    )
    common += " --gradient_checkpointing --gradient_accumulation_steps 2 --lr_warmup_steps 1 --no-use_ema --seed 3"
    common += " --validation_steps 1"
    pretrained = [] if script in WITHOUT_VAE else ["--pretrained_vae", vae]
    flags = [*SIZES[script], "--train_data_dir", dataset, *pretrained, *common.split(), *flags.split()]
    train(script, *flags, "--output_dir", tmp_path)
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 2
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / WEIGHTS[script]).values())


@pytest.mark.parametrize("script", SIZES)
def test_the_folder_of_another_run_is_refused(tmp_path, train, stage_flags, script):
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(SystemExit, match="has checkpoints of another run; --resume_from_checkpoint latest continues"):
        train(script, *stage_flags(script), "--output_dir", tmp_path)


@pytest.mark.parametrize("script", SIZES)
def test_two_processes_are_two_accumulated_passes(tmp_path, train, stage_flags, script):
    """Both runs see the same crops in each optimiser step. Equal weights show that processes share their gradients."""
    flags = [*stage_flags(script), "--max_train_steps", 2]
    launch(script, tmp_path, *flags, "--output_dir", tmp_path / "two", num_processes=2)
    train(script, *flags, "--output_dir", tmp_path / "accumulated", "--gradient_accumulation_steps", 2)
    train(script, *flags, "--output_dir", tmp_path / "one")
    two, accumulated, one = (load_file(tmp_path / name / WEIGHTS[script]) for name in ("two", "accumulated", "one"))
    rounding = sum((two[name] - accumulated[name]).abs().sum().item() for name in two)
    share_of_second_process = sum((two[name] - one[name]).abs().sum().item() for name in two)
    assert rounding < 0.02 * share_of_second_process


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as its wheel installs it."""
    pytest.importorskip("setuptools")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "lsdm_diffusers", source / "lsdm_diffusers", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target, source]
    subprocess.run([sys.executable, "-m", *map(str, install)], check=True, capture_output=True, text=True)
    return target


def test_the_installed_package_trains_outside_the_checkout(tmp_path, installed, stage_flags):
    """All scripts run in one process, which spares imports. Their model cards need a template from the package."""
    runs = []
    for script in SIZES:
        flags = [*stage_flags(script), "--max_train_steps", 1, "--output_dir", tmp_path / script]
        runs.append([str(TRAINING / script), *map(str, flags)])
    _, environment = command_line("", tmp_path / "cache", package=installed)
    command = [sys.executable, "-c", RUN_SCRIPTS, json.dumps(runs)]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1].startswith(str(installed))
    for script in SIZES:
        assert any((tmp_path / script).rglob("README.md"))
