"""The terms of the autoencoder's loss against their definitions."""

import pytest
import torch

from lsdm_diffusers.models.patch_discriminator import PatchDiscriminator
from lsdm_diffusers.training.autoencoder_loss import AutoencoderLoss, discriminator_loss

from ..conftest import tiny_vae


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def noise():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_discriminator_loss_is_hinge(pixels):
    logits = torch.tensor([2.0, 0.5, -3.0, 0.0])[:, None]
    loss = discriminator_loss(lambda both: logits, pixels, pixels)
    # real 2 and 0.5: 0 and 0.5; reconstructed -3 and 0: 0 and 1
    assert loss.item() == pytest.approx((0.25 + 0.5) / 2)


def test_a_loss_without_options_is_l1_and_kl(pixels, noise):
    loss, parts, reconstruction = AutoencoderLoss(tiny_vae(), kl_weight=0.1)(pixels, noise)
    assert parts.keys() == {"l1", "kl"}
    torch.testing.assert_close(parts["l1"], (reconstruction - pixels).abs().mean())
    torch.testing.assert_close(loss, parts["l1"] + 0.1 * parts["kl"])


def test_adaptive_weight_balances_the_gradients_at_the_last_layer(pixels, noise):
    torch.manual_seed(0)
    vae, discriminator = tiny_vae().train(), PatchDiscriminator(4).requires_grad_(False)
    module = AutoencoderLoss(vae, 1e-4, difference_weight=1.0, discriminator_weight=0.5)
    loss, parts, reconstruction = module(pixels, noise, discriminator)

    def gradient_norm(part):
        return torch.autograd.grad(part, vae.decoder.conv_out.weight, retain_graph=True)[0].norm().item()

    weighted_adversarial = parts["adversarial_weight"] * parts["adversarial"]
    likeness = parts["l1"] + parts["differences"]
    assert gradient_norm(weighted_adversarial) == pytest.approx(0.5 * gradient_norm(likeness), rel=2e-2)
    torch.testing.assert_close(loss, likeness + 1e-4 * parts["kl"] + weighted_adversarial)
    assert reconstruction.shape == pixels.shape
