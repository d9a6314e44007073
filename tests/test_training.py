"""Each training stage through its command line: train, be cut off, resume, and end with the very weights of an uninterrupted run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from safetensors.torch import load_file

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier

from .conftest import sample, tiny_pipeline

TRAINING = Path(__file__).parent.parent / "training"
RATINGS = ("malignancy", "lobulation", "spiculation", "texture")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Slices of 96x96 pixels and nodule crops, with the columns of the small recipe's dataset."""
    generator = np.random.default_rng(0)

    def row(kind, rating):
        size = 64 if kind == "nodule" else 96
        labels = np.full((size, size), 4, np.uint8)
        labels[:8] = 1
        labels[28:36, 28:36] = 5 + 2 * (rating > 3)
        image = np.where(labels >= 5, 900 + 20 * rating, 150) + generator.integers(0, 60, labels.shape)
        nodule = {"patient_id": "p", "centroid_yx": [32.0, 32.0], **dict.fromkeys(RATINGS, float(rating))}
        pictures = {"image": PILImage.fromarray(image.astype(np.uint16)), "semantic_map": PILImage.fromarray(labels)}
        return {**pictures, "kind": kind, "patient_id": "p", "pixel_spacing_mm": 0.7, "nodules": [nodule]}

    features = Features(
        {
            "image": Image(),
            "semantic_map": Image(),
            "kind": Value("string"),
            "patient_id": Value("string"),
            "pixel_spacing_mm": Value("float32"),
            "nodules": List(
                {"patient_id": Value("string"), "centroid_yx": List(Value("float32"), length=2), **dict.fromkeys(RATINGS, Value("float32"))}
            ),
        }
    )
    rows = [row("nodule", rating) for rating in (1, 2, 3, 4, 5) * 2] + [row("slice", 2), row("slice_with_nodules", 5)]
    split = Dataset.from_list(rows, features=features)
    folder = tmp_path_factory.mktemp("dataset")
    for name, part in DatasetDict({"train": split, "validation": split}).items():
        (folder / "data").mkdir(exist_ok=True)
        part.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    tiny_pipeline().vae.save_pretrained(folder)
    return folder


def train(script, cache, *arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
    command += ["--mixed_precision", "no", "--cpu", str(TRAINING / script), *map(str, arguments)]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def assert_same_weights(first, second):
    weights, resumed = load_file(first), load_file(second)
    assert weights.keys() == resumed.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(resumed[name], tensor, atol=0, rtol=0)


def train_and_resume(tmp_path, script, common, weights):
    """Four steps at once, and two steps, two more: checkpoints of the limit only, and the same weights."""
    steps = ("--checkpointing_steps", 1, "--checkpoints_total_limit", 2, "--validation_steps", 4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(script, tmp_path, *common, "--output_dir", whole, "--max_train_steps", 4, *steps)
    assert sorted(path.name for path in whole.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    # a run that was cut off after step 3: its newer checkpoint and results are gone
    parts.mkdir()
    (whole / "checkpoint-3").rename(parts / "checkpoint-3")
    train(script, tmp_path, *common, "--output_dir", parts, "--max_train_steps", 4, *steps, "--resume_from_checkpoint", "latest")
    assert_same_weights(whole / weights, parts / weights)
    return whole


def test_autoencoder(tmp_path, dataset):
    common = ["--dataset_name", dataset, "--block_out_channels", 8, 8, 16, "--norm_num_groups", 4, "--crop_size", 32, "--train_batch_size", 2]
    folder = train_and_resume(tmp_path, "train_autoencoder.py", common, "diffusion_pytorch_model.safetensors")
    assert (folder / "validation-4.png").is_file() and (folder / "validation.json").is_file()
    vae = tiny_pipeline().vae.from_pretrained(folder)
    assert vae.config.scaling_factor != 0.18215


def test_classifier(tmp_path, dataset, vae):
    common = ["--dataset_name", dataset, "--pretrained_vae", vae, "--feature", "malignancy", "--train_batch_size", 4]
    common += ["--augmentation_views", 2]
    folder = train_and_resume(tmp_path, "train_classifier.py", common, "diffusion_pytorch_model.safetensors")
    assert NoduleClassifier.from_pretrained(folder).config.feature == "malignancy"


def test_unet(tmp_path, dataset, vae, semantic_map):
    common = ["--dataset_name", dataset, "--pretrained_vae", vae, "--block_out_channels", 16, 32, "--attention_levels", 0, 1]
    common += ["--layers_per_block", 1, "--norm_num_groups", 8, "--attention_head_dim", 8, "--spade_hidden_channels", 8, "--crop_size", 64]
    common += ["--train_batch_size", 2, "--random_flip", "--blank_background", "--prediction_type", "v_prediction"]
    folder = train_and_resume(tmp_path, "train_unet.py", common, "pipeline/unet/diffusion_pytorch_model.safetensors")
    assert (folder / "validation-4.png").is_file() and (folder / "log.jsonl").read_text().count("\n") == 1
    pipe = LSDMGuidedPipeline.from_pretrained(folder / "pipeline")
    assert sample(pipe, semantic_map).shape == (1, 96, 128)
