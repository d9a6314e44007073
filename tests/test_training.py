"""Each training stage through its command line: train, be cut off, resume, and end with the very weights of an uninterrupted run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from diffusers import AutoencoderKL, DDPMScheduler
from PIL import Image as PILImage
from safetensors.torch import load_file

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier
from lsdm_diffusers.ct_dataset import FEATURES, encode_row, nodule_crops, nodule_entry, write_shard
from lsdm_diffusers.lidc import LidcNodule
from lsdm_diffusers.semantic_map import SemanticLabel

from .conftest import sample, tiny_pipeline
from .hub_stand_in import upload_hub

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


def train(script, cache, *arguments, num_processes=1, hub=None):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
    command += ["--mixed_precision", "no", "--cpu"]
    if num_processes > 1:  # accelerate launches several CPU processes by MPI only; its Accelerator takes those of torchrun just as well
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command += [str(TRAINING / script), *map(str, arguments)]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    environment.update({"ACCELERATE_USE_CPU": "true", **(hub or {})})
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module", params=[16, 8], ids=["16-bit", "8-bit"])
def prepared(request, tmp_path_factory):
    """A dataset as prepare_lidc.py writes it: slices, the rated nodules inside them, no crops."""
    folder, generator = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    for split in ("train", "validation"):
        rows = []
        for rating in (1, 2, 3, 4, 5):
            mask = np.zeros((96, 96), dtype=bool)
            mask[2:10, 80:90] = True  # near the border
            labels = np.full((96, 96), 4, np.uint8)
            labels[mask] = SemanticLabel.for_malignancy(rating)
            hu = np.where(mask, 0, -850) + generator.integers(-30, 30, (96, 96))
            nodule = LidcNodule(f"1-{rating}", (1, 2), {name: (rating, rating) for name in RATINGS}, 6.0, {})
            columns = {name: None for name in FEATURES if name not in ("image", "semantic_map", "nodules")}
            rows.append(encode_row(hu, labels, request.param, **{**columns, "patient_id": "p", "nodules": [nodule_entry(nodule, mask)]}))
        write_shard(folder / "data" / f"{split}-p.parquet", rows)
    return folder


def test_every_stage_trains_on_a_prepared_dataset(tmp_path, prepared):
    steps = ("--max_train_steps", 1, "--train_batch_size", 2, "--dataset_name", prepared)
    sizes = ("--block_out_channels", 8, 8, 16, "--norm_num_groups", 4, "--crop_size", 32, "--perceptual", "none")
    train("train_autoencoder.py", tmp_path, *steps, *sizes, "--output_dir", tmp_path / "vae")
    train("train_classifier.py", tmp_path, *steps, "--pretrained_vae", tmp_path / "vae", "--feature", "texture", "--output_dir", tmp_path / "texture")
    assert NoduleClassifier.from_pretrained(tmp_path / "texture").config.objective == "regression"
    sizes = ("--block_out_channels", 16, 32, "--attention_levels", 0, 0, "--norm_num_groups", 8, "--attention_head_dim", 8, "--crop_size", 64)
    train("train_unet.py", tmp_path, *steps, *sizes, "--pretrained_vae", tmp_path / "vae", "--output_dir", tmp_path / "unet")
    assert LSDMGuidedPipeline.from_pretrained(tmp_path / "unet" / "pipeline").vae.config.latent_channels == 3


def test_crops_are_cut_around_nodules(prepared):
    crops = list(nodule_crops(load_dataset(str(prepared), split="train")))
    assert [nodule["malignancy"] for _, nodule in crops] == [1, 2, 3, 4, 5]
    for crop, _ in crops:  # moved inside the frame: rows 0..63, columns 32..95
        assert crop.shape == (64, 64)
        assert np.abs((crop[2:10, 48:58] + 1) * 912 - 1024).max() < 40 and ((crop[20:] + 1) * 912 - 1024).max() < -800


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
    common += ["--perceptual", "efficientnet", "--difference_weight", 1, "--disc_start", 2, "--disc_channels", 4]
    folder = train_and_resume(tmp_path, "train_autoencoder.py", common, "diffusion_pytorch_model.safetensors")
    assert (folder / "validation-4.png").is_file() and (folder / "validation.json").is_file()
    vae = tiny_pipeline().vae.from_pretrained(folder)
    assert vae.config.scaling_factor != 0.18215


def test_slices_decoded_as_drawn_train_the_same_weights(tmp_path, dataset):
    common = ["--dataset_name", dataset, "--block_out_channels", 8, 8, 16, "--norm_num_groups", 4, "--crop_size", 32, "--perceptual", "none"]
    common += ["--train_batch_size", 2, "--max_train_steps", 2]
    train("train_autoencoder.py", tmp_path, *common, "--output_dir", tmp_path / "kept")
    train("train_autoencoder.py", tmp_path, *common, "--output_dir", tmp_path / "drawn", "--no-keep_in_memory")
    assert_same_weights(*(tmp_path / name / "diffusion_pytorch_model.safetensors" for name in ("kept", "drawn")))


def test_classifier(tmp_path, dataset, vae):
    common = ["--dataset_name", dataset, "--pretrained_vae", vae, "--feature", "malignancy", "--train_batch_size", 4]
    common += ["--augmentation_views", 2, "--label_balance", 0.5, "--timestep_power", 2, "--hu_thresholds", -500, -100]
    folder = train_and_resume(tmp_path, "train_classifier.py", common, "diffusion_pytorch_model.safetensors")
    config = NoduleClassifier.from_pretrained(folder).config
    assert config.feature == "malignancy" and config.hu_thresholds == [-500, -100]
    assert json.loads((folder / "validation.json").read_text())["t20"].keys() == {"auc_ge3", "auc_ge4", "accuracy_ge3", "ece"}


def test_unet(tmp_path, dataset, vae, semantic_map):
    common = ["--dataset_name", dataset, "--pretrained_vae", vae, "--block_out_channels", 16, 32, "--attention_levels", 0, 1]
    common += ["--layers_per_block", 1, "--norm_num_groups", 8, "--attention_head_dim", 8, "--spade_hidden_channels", 8, "--crop_size", 64]
    common += [
        "--snr_gamma",
        5,
        "--label_dropout",
        0.3,
        "--train_batch_size",
        2,
        "--random_flip",
        "--blank_background",
        "--prediction_type",
        "v_prediction",
    ]
    folder = train_and_resume(tmp_path, "train_unet.py", common, "pipeline/unet/diffusion_pytorch_model.safetensors")
    assert (folder / "validation-4.png").is_file() and (folder / "log.jsonl").read_text().count("\n") == 1
    pipe = LSDMGuidedPipeline.from_pretrained(folder / "pipeline")
    assert sample(pipe, semantic_map).shape == (1, 96, 128)


@pytest.fixture(scope="module")
def train_unet():
    """The U-Net's script as a module."""
    spec = importlib.util.spec_from_file_location("train_unet", TRAINING / "train_unet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights(train_unet, prediction_type):
    """Of an error e in the prediction, x0 is off by e sigma/alpha (noise) or e sigma (v); min-SNR weights its square by min(SNR, gamma)."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0205, prediction_type=prediction_type)
    batch = {"latents": torch.zeros(1, 3, 4, 4), "map_latents": torch.zeros(1, 3, 4, 4), "labels": torch.zeros(1, 4, 4, dtype=torch.long)}
    noise = torch.zeros(1, 3, 4, 4)  # with latents 0: both targets are 0

    def unet(sample, timesteps, semantic_map):
        return SimpleNamespace(sample=torch.full_like(sample[:, :3], 2.0))

    for t in (5, 300, 900):
        alpha_bar = scheduler.alphas_cumprod[t].item()
        snr = alpha_bar / (1 - alpha_bar)
        error_of_x0 = 2.0 * ((1 - alpha_bar) / alpha_bar if prediction_type == "epsilon" else 1 - alpha_bar) ** 0.5
        loss = train_unet.diffusion_loss(unet, batch, noise, torch.tensor([t]), scheduler, 1.0, snr_gamma=5.0)
        assert loss.item() == pytest.approx(min(snr, 5.0) * error_of_x0**2, rel=1e-4)


def test_label_dropout_drops_the_map_or_one_label(train_unet):
    labels = torch.tensor([[0, 1, 4, 7]]).expand(2000, 4, 4).clone()
    batch = {"labels": labels.clone(), "map_latents": torch.ones(2000, 3, 4, 4)}
    train_unet.drop_labels(batch, 0.4, np.random.default_rng(0))
    dropped = batch["map_latents"][:, 0] == 0
    assert (batch["labels"][dropped] == SemanticLabel.BACKGROUND).all() and torch.equal(batch["labels"][~dropped], labels[~dropped])
    columns = dropped[:, 0].sum(dim=1)  # each label is one column
    whole, single = (columns == 4).float().mean().item(), (columns == 1).float().mean().item()
    assert whole == pytest.approx(0.2, abs=0.03) and single == pytest.approx(0.2, abs=0.03) and set(columns.tolist()) == {0, 1, 4}


def test_the_decoder_is_trained_alone(tmp_path, dataset, vae):
    """Latents, and so what the U-Net has learnt, stay as they are."""
    common = [
        "--train_data_dir",
        dataset,
        "--max_train_samples",
        11,
        "--pretrained_vae",
        vae,
        "--freeze_encoder",
        "--crop_size",
        64,
        "--perceptual",
        "none",
    ]
    train("train_autoencoder.py", tmp_path, *common, "--train_batch_size", 1, "--max_train_steps", 2, "--output_dir", tmp_path / "vae")
    before, after = AutoencoderKL.from_pretrained(vae), AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert after.config.scaling_factor == before.config.scaling_factor
    same = {name: torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items()}
    assert all(same[name] for name in same if name.startswith(("encoder", "quant_conv")))
    assert not any(same[name] for name in same if name.startswith("decoder") and name.endswith("conv.weight"))


def test_latents_encoded_as_drawn_train_the_same_weights(tmp_path, dataset, vae):
    common = ["--dataset_name", dataset, "--pretrained_vae", vae, "--block_out_channels", 16, 32, "--attention_levels", 0, 0, "--norm_num_groups", 8]
    common += ["--attention_head_dim", 8, "--crop_size", 64, "--train_batch_size", 2, "--max_train_steps", 2, "--random_flip"]
    train("train_unet.py", tmp_path, *common, "--output_dir", tmp_path / "cached")
    train("train_unet.py", tmp_path, *common, "--output_dir", tmp_path / "live", "--no-cache_latents")
    assert (tmp_path / "cached" / "latents" / "train-slices.safetensors").exists()
    assert not (tmp_path / "live" / "latents" / "train-slices.safetensors").exists()
    name = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert_same_weights(tmp_path / "cached" / name, tmp_path / "live" / name)


def test_a_run_is_pushed_to_the_hub(tmp_path, dataset, vae):
    """Weights and a card filled from the run, no checkpoints, no paths of this machine."""
    common = ["--dataset_name", dataset, "--pretrained_vae", vae, "--block_out_channels", 16, 32, "--attention_levels", 0, 0, "--norm_num_groups", 8]
    common += ["--attention_head_dim", 8, "--crop_size", 64, "--train_batch_size", 2, "--max_train_steps", 1, "--checkpointing_steps", 1]
    with upload_hub("user/lsdm", tmp_path / "home") as (environment, received):
        pushing = ("--output_dir", tmp_path / "unet", "--push_to_hub", "--hub_model_id", "user/lsdm")
        train("train_unet.py", tmp_path, *common, *pushing, hub=environment)
    assert {"model_index.json", "README.md", "validation.png", "unet/diffusion_pytorch_model.safetensors"} <= received.keys()
    assert not any("checkpoint" in name or "latents" in name for name in received)
    card = received["README.md"].decode()
    assert 'from_pretrained("user/lsdm")' in card and "| validation_loss |" in card and "--max_train_steps` 1\n" in card
    assert str(tmp_path) not in card and str(dataset) not in card


STAGES = {
    "train_autoencoder.py": ("--block_out_channels", 8, 8, 16, "--norm_num_groups", 4, "--crop_size", 32, "--perceptual", "none"),
    "train_classifier.py": ("--feature", "malignancy", "--dropout", 0, "--augmentation_views", 1),
    "train_unet.py": (
        "--block_out_channels",
        16,
        32,
        "--attention_levels",
        0,
        0,
        "--norm_num_groups",
        8,
        "--attention_head_dim",
        8,
        "--crop_size",
        64,
    ),
}


@pytest.mark.parametrize("script", STAGES)
def test_two_processes_are_two_accumulated_passes(tmp_path, dataset, vae, script):
    """Both see the same crops in each optimiser step, so the weights agree to rounding: the processes do share their gradients."""
    common = [*STAGES[script], "--dataset_name", dataset, "--train_batch_size", 2, "--max_train_steps", 2]
    common += [] if script == "train_autoencoder.py" else ["--pretrained_vae", vae]
    weights = "pipeline/unet" if script == "train_unet.py" else "."
    train(script, tmp_path, *common, "--output_dir", tmp_path / "two", num_processes=2)
    train(script, tmp_path, *common, "--output_dir", tmp_path / "accumulated", "--gradient_accumulation_steps", 2)
    train(script, tmp_path, *common, "--output_dir", tmp_path / "one")
    two, accumulated, one = (load_file(tmp_path / name / weights / "diffusion_pytorch_model.safetensors") for name in ("two", "accumulated", "one"))
    difference = sum((two[name] - accumulated[name]).abs().sum().item() for name in two)
    alone = sum((two[name] - one[name]).abs().sum().item() for name in two)
    assert difference < 0.02 * alone  # what the second process adds is there
