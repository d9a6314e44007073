"""The SPADE baseline's generator and discriminators."""

import pytest
import torch

from lsdm_diffusers.models.spade_gan import MultiscaleDiscriminator, SpadeGeneratorOutput

from ..conftest import tiny_generator


@pytest.fixture
def labels():
    return torch.randint(0, 8, (2, 64, 96), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def latents():
    return torch.randn(4, 5, 16, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_images_have_the_size_of_the_map_and_lie_in_the_range(labels, latents):
    assert tiny_generator()(labels).sample.shape == (2, 1, 64, 96)
    images = tiny_generator(latent_dim=5, out_channels=2)(labels, latents).sample
    assert images.shape == (4, 2, 64, 96) and images.abs().max() <= 1
    assert tiny_generator(block_out_channels=(8,))(labels[:, :33, :35]).sample.shape == (2, 1, 33, 35)
    assert tiny_generator(num_labels=10)(labels + 2).sample.shape == (2, 1, 64, 96)


@torch.no_grad()
def test_a_batch_equals_single_images(labels, latents):
    generator = tiny_generator(latent_dim=5)
    images = generator(labels, latents).sample
    for index in range(4):
        torch.testing.assert_close(
            images[index : index + 1], generator(labels[index // 2][None], latents[index : index + 1]).sample
        )
    assert not torch.allclose(images[0], images[1], atol=1e-3)  # of one map, by their noise


@torch.no_grad()
def test_a_nodule_of_one_pixel_changes_the_image():
    lung = torch.full((1, 64, 96), 4)
    nodule = lung.clone()
    nodule[0, 31, 51] = 7
    generator = tiny_generator()
    change = (generator(nodule).sample - generator(lung).sample).abs()[0, 0]
    assert change[25:38, 45:58].max() > 1e-2


@torch.no_grad()
def test_a_label_reaches_no_further_than_the_convolutions():
    """The group norms see the whole image, so they are left out here.

    The reach is 4 coarse pixels in the first block, then 2 of each finer level, then 1.
    """
    generator = tiny_generator()
    for module in generator.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda hidden_states: hidden_states.clone()
    lung = torch.full((1, 64, 128), 4)
    other = lung.clone()
    other[:, :, :4] = 3
    change = (generator(other).sample - generator(lung).sample).abs()[0, 0].amax(dim=0)
    reach = 4 + 4 * 4 + 2 * 2 + 2 + 1
    assert change[:4].min() > 0 and change[4:reach].max() > 0 and change[reach:].max() == 0


def test_gradient_checkpointing_gives_the_same_gradients(labels, latents):
    gradients = []
    for checkpointing in (False, True):
        generator = tiny_generator(latent_dim=5).train()
        if checkpointing:
            generator.enable_gradient_checkpointing()
        generator(labels, latents).sample.pow(2).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in generator.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"block_out_channels": (8, 18)},
            r"`block_out_channels` is \(8, 18\), but .* multiple of `norm_num_groups` \(4\)",
        ),
        ({"block_out_channels": ()}, r"`block_out_channels` is \(\), but at least one width"),
        ({"latent_dim": -1}, "`latent_dim` is -1, but 0"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_generator(**changes)


def test_wrong_inputs_are_named(labels, latents):
    plain, noisy = tiny_generator(), tiny_generator(latent_dim=5)
    for generator, arguments, message in (
        (plain, (labels + 1,), "contains the value 8, but labels are 0..7"),
        (plain, (labels.float(),), "dtype torch.float32, but integer labels"),
        (plain, (labels[:, :62],), "`semantic_map` is 62x96 pixels, but height and width must be multiples of 4"),
        (plain, (labels, latents), "`latents` has shape .* but `latent_dim` is 0, so None is needed"),
        (noisy, (labels,), r"`latents` is None, but \(n·2, 5, 16, 24\)"),
        (noisy, (labels, latents[:3]), r"`latents` is of shape \(3, 5, 16, 24\), but \(n·2, 5, 16, 24\)"),
        (noisy, (labels, latents[:, :, :8]), r"`latents` is of shape \(4, 5, 8, 24\)"),
    ):
        with pytest.raises(ValueError, match=message):
            generator(*arguments)
    with pytest.raises(ValueError, match=r"`image` is 64x96 pixels, but 3 scales need edges of 128"):
        MultiscaleDiscriminator(channels=4, num_scales=3)(torch.zeros(2, 1, 64, 96), labels)
    with pytest.raises(ValueError, match="`num_scales` is 0, but at least 1"):
        MultiscaleDiscriminator(num_scales=0)


@torch.no_grad()
def test_the_discriminator_judges_image_and_map_at_every_scale(labels):
    torch.manual_seed(0)
    discriminator = MultiscaleDiscriminator(channels=4, num_scales=2)
    for _ in range(20):  # each call is one step of the power iteration for the spectral norm
        judged = discriminator(torch.zeros(2, 1, 64, 96), labels)
    assert [tuple(features.shape[1:]) for features in judged[0]] == [
        (4, 32, 48),
        (8, 16, 24),
        (16, 8, 12),
        (32, 7, 11),
        (1, 6, 10),
    ]
    assert judged[1][0].shape == (2, 4, 16, 24) and len(judged) == 2
    discriminator.eval()
    first, other_map, other_image = (
        discriminator(torch.full((2, 1, 64, 96), value), m)
        for value, m in ((0.0, labels), (0.0, labels.flip(2)), (0.5, labels))
    )
    for scale in range(2):
        for changed in (other_map, other_image):
            assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(first[scale], changed[scale], strict=True))
    for layer in discriminator.modules():
        if isinstance(layer, torch.nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_output_is_a_dict_or_a_tuple():
    generator, labels = tiny_generator(), torch.full((1, 64, 64), 4)
    with torch.no_grad():
        output = generator(labels)
        (sample,) = generator(labels, return_dict=False)
    assert isinstance(output, SpadeGeneratorOutput) and torch.equal(output.sample, sample)
