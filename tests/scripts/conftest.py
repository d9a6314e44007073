"""What the tests of the training scripts share: tiny sizes, command lines, and a run that is killed and resumed."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lsdm_diffusers.data.dataset import FEATURES, encode_row, write_shard
from lsdm_diffusers.data.lidc import LidcNodule
from lsdm_diffusers.data.lidc.prepare import nodule_entry
from lsdm_diffusers.labels import SemanticLabel

from ..conftest import RATINGS, ROOT, TRAINING, assert_same_weights, tiny_vae

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# flags that make each stage tiny, and where it saves its weights
SIZES = {
    "train_autoencoder.py": "--block_out_channels 8 8 16 --norm_num_groups 4 --crop_size 32 --perceptual none".split(),
    "train_classifier.py": "--feature malignancy --dropout 0 --augmentation_views 1".split(),
    "train_unet.py": (
        "--block_out_channels 16 32 --attention_levels 0 0 --norm_num_groups 8 --attention_head_dim 8 --crop_size 64"
    ).split(),
    "train_spade_gan.py": (
        "--block_out_channels 8 8 16 --norm_num_groups 4 --spade_hidden_channels 8 --disc_channels 4 --crop_size 64 "
        "--perceptual none"
    ).split(),
}
WEIGHTS = {
    "train_autoencoder.py": WEIGHTS_FILE,
    "train_classifier.py": WEIGHTS_FILE,
    "train_unet.py": f"pipeline/unet/{WEIGHTS_FILE}",
    "train_spade_gan.py": f"pipeline/spade_generator/{WEIGHTS_FILE}",
}
WITHOUT_VAE = ("train_autoencoder.py", "train_spade_gan.py")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """Folder of a tiny autoencoder."""
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stage_flags(dataset, vae):
    """The flags of a tiny run of a script, without its output folder."""

    def flags(script):
        pretrained = [] if script in WITHOUT_VAE else ["--pretrained_vae", vae]
        return [*SIZES[script], "--dataset_name", dataset, *pretrained, "--train_batch_size", 2]

    return flags


@pytest.fixture(scope="module", params=[16, 8], ids=["16-bit", "8-bit"])
def prepared(request, tmp_path_factory):
    """A dataset as prepare_lidc.py writes it: slices that list rated nodules near the border, no crops."""
    folder, generator = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    for split in ("train", "validation"):
        rows = []
        for rating in (1, 2, 3, 4, 5):
            mask = np.zeros((96, 96), dtype=bool)
            mask[2:10, 80:90] = True
            labels = np.full((96, 96), SemanticLabel.LUNG, np.uint8)
            labels[mask] = SemanticLabel.for_malignancy(rating)
            hu = np.where(mask, 0, -850) + generator.integers(-30, 30, (96, 96))
            nodule = LidcNodule(f"1-{rating}", (1, 2), {name: (rating, rating) for name in RATINGS}, 6.0, {})
            columns = {name: None for name in FEATURES if name not in ("image", "semantic_map")}
            columns |= {"patient_id": "p", "nodules": [nodule_entry(nodule, mask)]}
            rows.append(encode_row(hu, labels, request.param, **columns))
        write_shard(folder / "data" / f"{split}-p.parquet", rows)
    return folder


def script_module(name):
    """A training script as a module."""
    spec = importlib.util.spec_from_file_location(name, TRAINING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command_line(script, cache, *arguments, num_processes=1, package=ROOT, more_environment=None):
    """The command line of a script under `accelerate launch`, and its environment.

    Several processes are started by torchrun: accelerate launches several CPU processes by MPI only, but its
    `Accelerator` takes those of torchrun just as well.
    """
    if num_processes == 1:
        launcher = "accelerate.commands.launch --num_processes 1 --num_machines 1 --dynamo_backend no "
        launcher += "--mixed_precision no --cpu"
    else:
        launcher = f"torch.distributed.run --standalone --nproc_per_node {num_processes}"
    command = [sys.executable, "-m", *launcher.split(), TRAINING / script, *arguments]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(package),
        **(more_environment or {}),
    }
    return [str(part) for part in command], environment


def launch(script, cache, *arguments, cwd=None, **options):
    """Run a script in a process of its own."""
    command, environment = command_line(script, cache, *arguments, **options)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=cwd)
    assert run.returncode == 0, run.stderr[-3000:]


def logged_losses(folder):
    """The loss of each step, from the newest tensorboard file of a run."""
    newest = max(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
    events = EventAccumulator(str(newest))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


@pytest.fixture
def train_kill_and_resume(tmp_path, train):
    """Check that a run that is killed and resumed has the losses and weights of an uninterrupted one.

    The killed run has a process of its own, under `accelerate launch`; the others run in this process.

    Returns:
        A function of a script and its flags that returns the folder of the uninterrupted run.
    """
    steps = "--max_train_steps 12 --checkpointing_steps 2 --validation_steps 12 --report_to tensorboard".split()

    def check(script, flags):
        whole, killed, weights = tmp_path / "whole", tmp_path / "killed", WEIGHTS[script]
        train(script, *flags, *steps, "--output_dir", whole)
        assert sorted(path.name for path in whole.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]
        command, environment = command_line(script, tmp_path / "cache", *flags, *steps, "--output_dir", killed)
        run = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while run.poll() is None and not any(killed.glob("checkpoint-*")):
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL and not (killed / weights).exists()
        steps_done = max(int(path.name.split("-")[1]) for path in killed.glob("checkpoint-*"))
        assert steps_done < 12
        train(script, *flags, *steps, "--output_dir", killed, "--resume_from_checkpoint", "latest")
        remaining = {step: loss for step, loss in logged_losses(whole).items() if step > steps_done}
        assert logged_losses(killed) == remaining
        assert_same_weights(whole / weights, killed / weights)
        return whole

    return check
