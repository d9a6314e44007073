"""The losses of the SPADE baseline's generator and discriminators."""

import numpy as np
import pytest
import torch

from lsdm_diffusers.models.spade_gan import MultiscaleDiscriminator
from lsdm_diffusers.training.spade_gan_loss import SpadeGanLoss, discriminator_loss, feature_matching_loss

from ..conftest import tiny_generator


@pytest.fixture
def labels():
    return torch.randint(0, 8, (2, 64, 96), generator=torch.Generator().manual_seed(0))


def test_feature_matching_is_l1_of_all_but_the_logits():
    """Layers differ by 1 and 2 at the first scale, and by 3 at the second: ((1 + 2) + 3) / 2 without the logits."""
    real = [
        [torch.zeros(2, 3, 4, 4), torch.ones(2, 5, 2, 2), torch.zeros(2, 1, 1, 1)],
        [torch.ones(2, 3, 2, 2), torch.zeros(2, 1, 1, 1)],
    ]
    made = [[real[0][0] + 1, real[0][1] - 2, real[0][2] + 100], [real[1][0] + 3, real[1][1] + 100]]
    assert feature_matching_loss(made, real).item() == pytest.approx(3)
    assert feature_matching_loss(real, real).item() == 0


def test_discriminator_loss_is_hinge_over_both_halves_and_all_scales(labels):
    seen = []

    def discriminator(image, semantic_map):
        seen.append((image, semantic_map))
        # real 2 and 0.5, made -3 and 0: (0 + 0.5) / 2 and (0 + 1) / 2; at the other scale all 0: 1 and 1
        return [
            [torch.zeros(4, 1, 1, 1), torch.tensor([2, 0.5, -3, 0])[:, None, None, None]],
            [torch.zeros(4, 1, 1, 1)],
        ]

    pixels, image = torch.zeros(2, 1, 64, 96), torch.ones(2, 1, 64, 96, requires_grad=True)
    loss = discriminator_loss(discriminator, pixels, image, labels)
    assert loss.item() == pytest.approx(((0.25 + 0.5) / 2 + (1 + 1) / 2) / 2) and not loss.requires_grad
    assert torch.equal(seen[0][0], torch.cat([pixels, image])) and torch.equal(seen[0][1], torch.cat([labels, labels]))


def test_generator_loss_is_the_sum_of_its_parts(labels):
    """A discriminator whose feature is twice and whose logit is the image plus the mean label, at one scale."""

    def discriminator(image, semantic_map):
        return [[2 * image, image + semantic_map.float().mean()]]

    generator, pixels = tiny_generator(), torch.zeros(2, 1, 64, 96)
    loss, parts, image = SpadeGanLoss(generator, 10.0, lambda a, b: (a - b).square().mean(), 5.0)(
        labels, pixels, discriminator
    )
    assert torch.equal(image, generator(labels).sample)
    expected = {
        "adversarial": -image.mean() - labels.float().mean(),
        "features": 2 * image.abs().mean(),
        "perceptual": image.square().mean(),
    }
    for name, part in expected.items():
        torch.testing.assert_close(parts[name], part)
    torch.testing.assert_close(loss, expected["adversarial"] + 10 * expected["features"] + 5 * expected["perceptual"])
    alone, parts, _ = SpadeGanLoss(generator, 0.0)(labels, pixels, discriminator)
    assert "perceptual" not in parts and torch.equal(alone, parts["adversarial"])


def test_a_few_steps_bring_the_generator_nearer_to_the_slice():
    """Two labels, two grey values: feature matching alone teaches which is which."""
    torch.manual_seed(0)
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 4
    pixels = torch.where(labels == 4, 0.6, -0.6)[:, None]
    generator, discriminator = tiny_generator().train(), MultiscaleDiscriminator(channels=8, num_scales=1)
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3, betas=(0.0, 0.9))
    disc_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    loss_module, errors = SpadeGanLoss(generator), []
    for _ in range(40):
        loss, _, image = loss_module(labels, pixels, discriminator.requires_grad_(False))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        disc_optimizer.zero_grad()
        discriminator_loss(discriminator.requires_grad_(True), pixels, image, labels).backward()
        disc_optimizer.step()
        errors.append((image - pixels).abs().mean().item())
    assert np.mean(errors[-5:]) < 0.4 * errors[0]
