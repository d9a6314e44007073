"""The loss on the decoder's features: what it is zero for, its gradient, and the prediction of clean latents."""

import pytest
import torch
from diffusers import DDPMScheduler

from lsdm_diffusers.training.decoder_feature_loss import DecoderFeatureLoss, predicted_clean_latents

from ..conftest import BETAS, tiny_vae


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_right_prediction_gives_the_clean_latents(prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type, **BETAS)
    latents, noise = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    timesteps = torch.tensor([0, 150, 700])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    targets = {"epsilon": noise, "v_prediction": scheduler.get_velocity(latents, noise, timesteps), "sample": latents}
    clean = predicted_clean_latents(targets[prediction_type], noisy, timesteps, scheduler)
    torch.testing.assert_close(clean, latents, atol=2e-4, rtol=1e-3)


def test_it_is_zero_for_equal_latents_and_grows_with_the_error():
    loss, latents = DecoderFeatureLoss(tiny_vae()), torch.randn(2, 3, 8, 8)
    direction = torch.randn_like(latents)
    errors = [loss(latents + size * direction, latents).item() for size in (0.0, 0.05, 0.1, 0.2)]
    assert errors[0] == 0 and errors == sorted(errors) and errors[1] > 0
    assert errors[2] / errors[1] == pytest.approx(4, rel=0.3)  # squared, as long as the decoder is nearly linear


def test_features_are_those_of_the_decoder_itself():
    """Carried on through the rest of the decoder, they give its picture."""
    vae, latents = tiny_vae(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        hidden_states = DecoderFeatureLoss(vae).features(latents)[-1]
        for block in vae.decoder.up_blocks[1:]:
            hidden_states = block(hidden_states)
        picture = vae.decoder.conv_out(vae.decoder.conv_act(vae.decoder.conv_norm_out(hidden_states)))
        torch.testing.assert_close(picture, vae.decode(latents / vae.config.scaling_factor).sample)


def test_its_gradient_reaches_the_latents_alone():
    vae = tiny_vae().requires_grad_(False)
    predicted = torch.randn(1, 3, 8, 8, requires_grad=True)
    DecoderFeatureLoss(vae)(predicted, torch.randn(1, 3, 8, 8)).backward()
    assert predicted.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in vae.parameters())
