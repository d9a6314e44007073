"""PatchGAN: the size of its output, and the patch that one logit judges."""

import pytest
import torch

from lsdm_diffusers.models.patch_discriminator import SMALLEST_EDGE, PatchDiscriminator


@pytest.mark.parametrize("size", [(SMALLEST_EDGE, 47), (64, 96), (71, 33)])
@pytest.mark.parametrize("in_channels", [1, 9])
def test_logits_of_overlapping_patches(size, in_channels):
    logits = PatchDiscriminator(channels=4, in_channels=in_channels)(torch.randn(2, in_channels, *size))
    assert logits.shape == (2, 1, size[0] // 8 - 2, size[1] // 8 - 2)


def test_a_logit_judges_70x70_pixels():
    """The instance norms see the whole image, so they are left out here."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=4)
    for index, layer in enumerate(discriminator):
        if isinstance(layer, torch.nn.InstanceNorm2d):
            discriminator[index] = torch.nn.Identity()
    image = torch.randn(1, 1, 160, 160, requires_grad=True)
    discriminator(image)[0, 0, 9, 9].backward()
    seen = image.grad[0, 0] != 0
    assert seen.any(dim=1).sum() == seen.any(dim=0).sum() == 70


def test_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    discriminator, images = PatchDiscriminator(channels=4), torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(discriminator(images)[1:2], discriminator(images[1:2]))
