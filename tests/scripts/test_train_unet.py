"""The training script of the U-Net through its command line, and its loss."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from lsdm_diffusers import LSDMGuidedPipeline

from ..conftest import BETAS, assert_same_weights, sample, tiny_unet
from ..hub_stand_in import stand_in_hub
from .conftest import WEIGHTS, launch, script_module

SCRIPT = "train_unet.py"


@pytest.fixture(scope="module")
def train_unet():
    """The script as a module."""
    return script_module("train_unet")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(train_kill_and_resume, dataset, vae, semantic_map):
    flags = "--block_out_channels 16 32 --attention_levels 0 1 --layers_per_block 1 --norm_num_groups 8 "
    flags += (
        "--attention_head_dim 8 --spade_hidden_channels 8 --crop_size 64 --train_batch_size 2 --augmentation_views 2 "
    )
    flags += "--snr_gamma 5 --label_dropout 0.3 --blank_background --prediction_type v_prediction "
    flags += (
        "--nodule_ratings --window_probability 0.4 --window_size 32 --max_slices_per_patient 1 --decoder_loss_weight 1"
    )
    flags = ["--dataset_name", dataset, "--pretrained_vae", vae, *flags.split()]
    folder = train_kill_and_resume(SCRIPT, flags)
    assert (folder / "validation-12.png").is_file() and (folder / "log.jsonl").read_text().count("\n") == 1
    pipe = LSDMGuidedPipeline.from_pretrained(folder / "pipeline")
    assert sample(pipe, semantic_map).shape == (1, 96, 128)


@pytest.mark.slow
def test_latents_encoded_as_drawn_train_the_same_weights(tmp_path, train, stage_flags):
    flags = [*stage_flags(SCRIPT), "--max_train_steps", 2, "--augmentation_views", 2, "--nodule_ratings"]
    train(SCRIPT, *flags, "--output_dir", tmp_path / "cached")
    train(SCRIPT, *flags, "--output_dir", tmp_path / "live", "--no-cache_latents")
    assert (tmp_path / "cached" / "latents" / "train.safetensors").exists()
    assert not (tmp_path / "live" / "latents" / "train.safetensors").exists()
    assert_same_weights(tmp_path / "cached" / WEIGHTS[SCRIPT], tmp_path / "live" / WEIGHTS[SCRIPT])


def test_latents_of_other_flags_are_refused(tmp_path, train, stage_flags):
    flags = [*stage_flags(SCRIPT), "--max_train_steps", 1, "--latents_dir", tmp_path / "latents"]
    flags += ["--num_validation_images", 0]
    train(SCRIPT, *flags, "--output_dir", tmp_path / "first")
    with pytest.raises(SystemExit, match="from other data or with other flags; remove it"):
        train(SCRIPT, *flags, "--augmentation_views", 2, "--output_dir", tmp_path / "second")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights(train_unet, prediction_type):
    """The squared error of x0 has the weight min(SNR, gamma), with an error e in the prediction.

    x0 is then off by e sigma / alpha if the noise is predicted, and by e sigma if v is.
    """
    scheduler = DDPMScheduler(prediction_type=prediction_type, **BETAS)
    batch = {
        "latents": torch.zeros(1, 3, 4, 4),
        "map_latents": torch.zeros(1, 3, 4, 4),
        "labels": torch.zeros(1, 4, 4, dtype=torch.long),
    }
    noise = torch.zeros(1, 3, 4, 4)  # with latents 0, both targets are 0

    def unet(sample, timesteps, semantic_map):
        return SimpleNamespace(sample=torch.full_like(sample[:, :3], 2.0))

    for t in (5, 300, 900):
        alpha_bar = scheduler.alphas_cumprod[t].item()
        snr = alpha_bar / (1 - alpha_bar)
        squared_error = 4.0 * ((1 - alpha_bar) / alpha_bar if prediction_type == "epsilon" else 1 - alpha_bar)
        loss = train_unet.diffusion_loss(unet, batch, noise, torch.tensor([t]), scheduler, 1.0, snr_gamma=5.0)
        assert loss.item() == pytest.approx(min(snr, 5.0) * squared_error, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--streaming", "--no-cache_latents"), "it cannot be used with --no-cache_latents"),
        (("--streaming", "--max_slices_per_patient", 2), "it cannot be used with --max_slices_per_patient"),
        (("--nodule_ratings", "--spade_blocks", "none"), "it cannot be used with --spade_blocks none"),
        (("--max_slices_per_patient", 0), "--max_slices_per_patient is 0, but at least 1 is needed"),
        (("--augmentation_views", 0), "--augmentation_views is 0, but at least 1 is needed"),
        (("--window_probability", -1), "--window_probability is -1.0, but 0..1 is needed"),
        (("--decoder_loss_weight", -1), "--decoder_loss_weight is -1.0, but a number of at least 0 is needed"),
        (("--label_dropout", 2), "--label_dropout is 2.0, but 0..1 is needed"),
        (("--snr_gamma", 0), "--snr_gamma is 0.0, but a number above 0 is needed"),
    ],
)
def test_wrong_flags_say_what_is_allowed(tmp_path, train, dataset, vae, flags, message):
    with pytest.raises(SystemExit, match=message):
        train(SCRIPT, "--dataset_name", dataset, "--pretrained_vae", vae, *flags, "--output_dir", tmp_path / "run")


def test_rating_channels_are_added_to_a_trained_unet(train_unet, tmp_path):
    """It draws the same pictures until its new weights are trained."""
    tiny_unet().save_pretrained(tmp_path)
    args = SimpleNamespace(pretrained_unet=tmp_path, nodule_ratings=True, gradient_checkpointing=False)
    unet = train_unet.build_unet(args, vae=None, factor=4).eval()
    assert unet.config.rating_channels == 4
    latents, labels = torch.randn(1, 6, 16, 16), torch.full((1, 16, 16), 7)
    ratings = torch.full((1, 4, 16, 16), 5.0)
    with torch.no_grad():
        expected = tiny_unet()(latents, 5, semantic_map=labels).sample
        assert torch.equal(unet(latents, 5, semantic_map=labels, nodule_ratings=ratings).sample, expected)


@pytest.mark.slow
def test_a_run_is_pushed_to_the_hub(tmp_path, dataset, stage_flags):
    """Weights and a card filled from the run are uploaded, but no checkpoints and no paths of this machine."""
    flags = [*stage_flags(SCRIPT), "--max_train_steps", 1, "--checkpointing_steps", 1]
    flags += ["--output_dir", tmp_path / "unet", "--push_to_hub", "--hub_model_id", "user/lsdm"]
    with stand_in_hub(tmp_path / "home") as (environment, hub):
        launch(SCRIPT, tmp_path, *flags, more_environment=environment)
    received = hub.repositories["user/lsdm"]["main"]
    expected = {"model_index.json", "README.md", "validation.png", "unet/diffusion_pytorch_model.safetensors"}
    assert expected <= received.keys()
    assert not any("checkpoint" in name or "latents" in name for name in received)
    card = received["README.md"].decode()
    assert 'from_pretrained("user/lsdm")' in card
    assert "| validation_loss |" in card and "--max_train_steps` 1\n" in card
    assert "TO FILL IN: whose scans these are" in card  # this dataset has no card to say so
    for content in received.values():
        assert str(tmp_path).encode() not in content and str(dataset).encode() not in content
