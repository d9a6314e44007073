"""Perceptual distances between images."""

import sys

import pytest
import torch

from lsdm_diffusers.models.perceptual import perceptual_distance


@pytest.fixture(scope="module")
def distance():
    return perceptual_distance("efficientnet")


@pytest.fixture
def pixels():
    return torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_distance_grows_with_blur(distance, pixels):
    blurred = [torch.nn.functional.avg_pool2d(pixels, size, stride=1, padding=size // 2) for size in (1, 3, 7)]
    distances = [distance(image, pixels).item() for image in blurred]
    assert distances[0] == 0 and 0 < distances[1] < distances[2]


def test_the_network_is_frozen_and_stays_in_evaluation_mode(distance, pixels):
    before = distance(-pixels, pixels)
    assert not distance.train().training and not any(module.training for module in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert torch.equal(distance(-pixels, pixels), before)


def test_gradients_reach_the_reconstruction_alone(distance, pixels):
    reconstruction, target = (-pixels).requires_grad_(), pixels.clone().requires_grad_()
    distance(reconstruction, target).backward()
    assert reconstruction.grad.abs().max() > 0 and target.grad is None


def test_the_distance_of_a_batch_is_the_mean_of_its_images(distance, pixels):
    single = [distance(-pixels[index : index + 1], pixels[index : index + 1]) for index in range(2)]
    torch.testing.assert_close(distance(-pixels, pixels), torch.stack(single).mean(), rtol=1e-4, atol=1e-5)


def test_none_is_no_distance():
    assert perceptual_distance("none") is None


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="'vgg', but one of lpips, efficientnet, none"):
        perceptual_distance("vgg")


@pytest.mark.parametrize(("name", "package"), [("lpips", "lpips"), ("efficientnet", "efficientnet_lite_pytorch")])
def test_a_missing_package_is_an_error_and_nothing_takes_its_place(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeError, match=f"'{name}' cannot be loaded"):
        perceptual_distance(name)
