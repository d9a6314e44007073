"""The training script of the autoencoder through its command line."""

import json

import pytest
import torch
from diffusers import AutoencoderKL

from ..conftest import assert_same_weights
from .conftest import SIZES, WEIGHTS_FILE, script_module

SCRIPT = "train_autoencoder.py"


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(train_kill_and_resume, dataset):
    flags = "--block_out_channels 8 8 16 --norm_num_groups 4 --crop_size 32 --train_batch_size 2 "
    flags += "--perceptual efficientnet --difference_weight 1 --disc_start 2 --disc_channels 4"
    folder = train_kill_and_resume(SCRIPT, ["--dataset_name", dataset, *flags.split()])
    assert (folder / "validation-12.png").is_file()
    figures = json.loads((folder / "validation.json").read_text())
    assert figures["step"] == 12 and {"psnr", "mae_hu", "nodule_psnr"} < figures.keys()
    config = AutoencoderKL.from_pretrained(folder).config
    assert config.scaling_factor != 0.18215 and config.sample_size == 512  # diffusers' defaults are 0.18215 and 32


def test_slices_decoded_as_drawn_train_the_same_weights(tmp_path, train, stage_flags):
    flags = [*stage_flags(SCRIPT), "--max_train_steps", 2]
    train(SCRIPT, *flags, "--output_dir", tmp_path / "kept")
    train(SCRIPT, *flags, "--output_dir", tmp_path / "drawn", "--no-keep_in_memory")
    assert_same_weights(tmp_path / "kept" / WEIGHTS_FILE, tmp_path / "drawn" / WEIGHTS_FILE)


def test_the_decoder_is_trained_alone(tmp_path, train, dataset, vae):
    """Latents, and so what the U-Net has learnt, stay as they are."""
    flags = "--max_train_samples 11 --freeze_encoder --crop_size 64 --perceptual none --train_batch_size 1"
    flags = ["--train_data_dir", dataset, "--pretrained_vae", vae, *flags.split(), "--max_train_steps", 2]
    train(SCRIPT, *flags, "--output_dir", tmp_path / "vae")
    before, after = AutoencoderKL.from_pretrained(vae), AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert after.config.scaling_factor == before.config.scaling_factor
    new_weights = after.state_dict()
    same = {name: torch.equal(tensor, new_weights[name]) for name, tensor in before.state_dict().items()}
    assert all(same[name] for name in same if name.startswith(("encoder", "quant_conv")))
    assert not any(same[name] for name in same if name.startswith("decoder") and name.endswith("conv.weight"))


def test_figures_of_no_images_are_null_in_the_log(tmp_path, train, stage_flags):
    train(SCRIPT, *stage_flags(SCRIPT), "--max_train_steps", 1, "--num_validation_images", 0, "--output_dir", tmp_path)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["psnr"] is None and line["mae_hu"] is None and line["nodule_psnr"] > 0
    assert "| psnr |" not in (tmp_path / "README.md").read_text()


def test_another_length_of_the_one_cycle_schedule_is_refused(tmp_path, train, stage_flags):
    flags = [*stage_flags(SCRIPT), "--checkpointing_steps", 1, "--output_dir", tmp_path]
    train(SCRIPT, *flags, "--max_train_steps", 2)
    with pytest.raises(SystemExit, match="--max_train_steps is 3, but the checkpoint is of a run of 2 steps"):
        train(SCRIPT, *flags, "--max_train_steps", 3, "--resume_from_checkpoint", "latest")


def test_psnr_of_a_difference():
    psnr = script_module("train_autoencoder").psnr
    assert psnr(torch.full((1, 1, 4, 4), 0.2)) == pytest.approx(20)  # 10 log10((2 / 0.2)^2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--freeze_encoder",), "--freeze_encoder needs --pretrained_vae"),
        (("--max_train_samples", 0), "--max_train_samples is 0, but at least 1 is needed"),
        (("--checkpointing_steps", 0), "--checkpointing_steps is 0, but at least 1 is needed"),
    ],
)
def test_wrong_flags_say_what_is_allowed(tmp_path, train, dataset, flags, message):
    with pytest.raises(SystemExit, match=message):
        train(SCRIPT, "--dataset_name", dataset, *SIZES[SCRIPT], *flags, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
