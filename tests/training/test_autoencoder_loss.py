"""The terms of the autoencoder's loss against their definitions."""

import pytest
import torch

from lsdm_diffusers.models.patch_discriminator import PatchDiscriminator
from lsdm_diffusers.models.perceptual import perceptual_distance
from lsdm_diffusers.training.autoencoder_loss import AutoencoderLoss, discriminator_loss

from ..conftest import tiny_pipeline


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 1, 64, 64, generator=generator) * 2 - 1, torch.randn(2, 3, 16, 16, generator=generator)


def test_efficientnet_distance_grows_with_blur(batch):
    distance, pixels = perceptual_distance("efficientnet").train(), batch[0]
    blurred = [torch.nn.functional.avg_pool2d(pixels, size, stride=1, padding=size // 2) for size in (1, 3, 7)]
    distances = [distance(image, pixels).item() for image in blurred]
    assert distances[0] == 0 and 0 < distances[1] < distances[2]
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_perceptual_loss_that_cannot_be_had(monkeypatch):
    with pytest.raises(ValueError, match="'vgg', but one of lpips, efficientnet, none"):
        perceptual_distance("vgg")
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(RuntimeError, match="'lpips' cannot be loaded"):
        perceptual_distance("lpips")
    assert perceptual_distance("none") is None


def test_hinge_loss(batch):
    pixels = batch[0]
    logits = torch.tensor([2.0, 0.5, -3.0, 0.0])[:, None]
    loss = discriminator_loss(lambda both: logits, pixels, pixels)
    # real 2 and 0.5: 0 and 0.5; rebuilt -3 and 0: 0 and 1
    assert loss.item() == pytest.approx((0.25 + 0.5) / 2)


def test_adaptive_weight_balances_the_gradients_at_the_last_layer(batch):
    torch.manual_seed(0)
    vae, discriminator = tiny_pipeline().vae.train().requires_grad_(True), PatchDiscriminator(4).requires_grad_(False)
    loss, parts, reconstruction = AutoencoderLoss(vae, 1e-4, difference_weight=1.0, discriminator_weight=0.5)(
        *batch, discriminator
    )
    last = vae.decoder.conv_out.weight
    likeness = torch.autograd.grad(parts["l1"] + parts["differences"], last, retain_graph=True)[0].norm()
    adversarial = torch.autograd.grad(parts["adversarial"] * parts["adversarial_weight"], last, retain_graph=True)[
        0
    ].norm()
    assert adversarial.item() == pytest.approx(0.5 * likeness.item(), rel=2e-2)
    expected = (
        parts["l1"] + parts["differences"] + 1e-4 * parts["kl"] + parts["adversarial_weight"] * parts["adversarial"]
    )
    torch.testing.assert_close(loss, expected)
    assert reconstruction.shape == batch[0].shape


def test_discriminator_judges_patches():
    """A logit sees 70x70 pixels, no more (its instance norms aside)."""
    discriminator = PatchDiscriminator(4).eval()
    for layer in list(discriminator):
        if isinstance(layer, torch.nn.InstanceNorm2d):
            layer.track_running_stats, layer.running_mean, layer.running_var = (
                True,
                torch.zeros(layer.num_features),
                torch.ones(layer.num_features),
            )
    image = torch.zeros(1, 1, 160, 160, requires_grad=True)
    logits = discriminator(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows = image.grad[0, 0].abs().sum(dim=1).nonzero()
    assert rows.max() - rows.min() + 1 == 70
