"""The training script of the SPADE baseline through its command line."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lsdm_diffusers import SpadeGanPipeline
from lsdm_diffusers.hounsfield import HU_RANGE

from ..conftest import assert_same_weights

pytestmark = pytest.mark.slow

WEIGHTS = "pipeline/spade_generator/diffusion_pytorch_model.safetensors"
SIZES = (
    "--block_out_channels 8 8 16 --norm_num_groups 4 --spade_hidden_channels 8 --disc_channels 4 --crop_size 64"
).split()


def test_script_resumes_to_the_very_weights(tmp_path, train, dataset):
    flags = "--latent_dim 2 --train_batch_size 2 --max_train_steps 4 --perceptual efficientnet --random_flip"
    flags += " --blank_background --nodule_probability 0.5 --validation_steps 2 --checkpoints_total_limit 1"
    common = ["--dataset_name", dataset, *SIZES, *flags.split()]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train("train_spade_gan.py", *common, "--output_dir", whole, "--checkpointing_steps", 3)
    (resumed / "checkpoint-3").parent.mkdir()
    assert [path.name for path in whole.glob("checkpoint-*")] == ["checkpoint-3"]
    (whole / "checkpoint-3").rename(resumed / "checkpoint-3")
    # decoded as they are drawn or once, the slices are the same
    resume = ["--output_dir", resumed, "--resume_from_checkpoint", "latest", "--no-keep_in_memory"]
    train("train_spade_gan.py", *common, *resume)
    assert_same_weights(whole / WEIGHTS, resumed / WEIGHTS)
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4]
    for line in log:
        assert 0 < line["l1_hu"] < HU_RANGE
        assert {"psnr", "train_adversarial", "train_features", "train_perceptual", "train_discriminator"} < line.keys()
    assert Image.open(whole / "validation-4.png").size == (2 * 96, 2 * 96)
    pipe = SpadeGanPipeline.from_pretrained(whole / "pipeline")
    images = pipe(torch.zeros(96, 64, dtype=torch.long), num_images_per_map=2, output_type="hu").images
    assert images.shape == (2, 96, 64)
    card = (whole / "pipeline" / "README.md").read_text()
    assert "SpadeGanPipeline.from_pretrained" in card and "| l1_hu |" in card and "validation.png" in card
    assert str(dataset) not in card


def test_script_trains_from_a_stream_with_every_other_flag(tmp_path, train, dataset):
    others = "--train_batch_size 1 --max_train_steps 2 --perceptual none --streaming --mixed_precision bf16"
    others += " --gradient_checkpointing --gradient_accumulation_steps 2 --no-use_ema --feature_weight 5"
    others += " --lr_scheduler linear --lr_warmup_steps 1 --disc_scales 1 --max_grad_norm 0.5 --seed 3"
    flags = ["--train_data_dir", dataset, *SIZES, *others.split()]
    train("train_spade_gan.py", *flags, "--output_dir", tmp_path)
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / WEIGHTS).values())
    assert SpadeGanPipeline.from_pretrained(tmp_path / "pipeline").spade_generator.config.latent_dim == 0
    assert not list(tmp_path.glob("checkpoint-*")) and (tmp_path / "log.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--crop_size", 66), SystemExit, "--crop_size is 66, but a multiple of 4"),
        (("--crop_size", 32), SystemExit, "of at least 64, for --disc_scales"),
        (
            ("--feature_weight", "inf"),
            RuntimeError,
            "The loss is inf and the discriminator loss is .* at step 0; the last good checkpoint is in",
        ),
    ],
)
def test_script_stops_and_says_why(tmp_path, train, dataset, flags, error, message):
    common = ["--dataset_name", dataset, *SIZES, "--perceptual", "none", "--output_dir", tmp_path / "run"]
    with pytest.raises(error, match=message):
        train("train_spade_gan.py", *common, *flags)
