"""The SPADE baseline: generator, discriminators, losses, pipeline, and its training script through its command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lsdm_diffusers import LSDMPipelineOutput, SpadeGanPipeline, SpadeGenerator
from lsdm_diffusers.models.spade_gan import MultiscaleDiscriminator
from lsdm_diffusers.semantic_map import semantic_map_image
from lsdm_diffusers.training.spade_gan_loss import SpadeGanLoss, discriminator_loss, feature_matching_loss

from ..scripts.test_train import assert_same_weights

WEIGHTS = "pipeline/spade_generator/diffusion_pytorch_model.safetensors"


def tiny_generator(**changes):
    torch.manual_seed(0)
    return SpadeGenerator(
        **{"block_out_channels": (8, 16, 16), "spade_hidden_channels": 8, "norm_num_groups": 4, **changes}
    ).eval()


def tiny_pipeline(**changes):
    return SpadeGanPipeline(tiny_generator(**changes))


@pytest.fixture
def labels():
    return torch.randint(0, 8, (2, 64, 96), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def latents():
    return torch.randn(4, 5, 16, 24, generator=torch.Generator().manual_seed(0))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_images_have_the_size_of_the_map_and_lie_in_the_range(labels, latents):
    assert tiny_generator()(labels).shape == (2, 1, 64, 96)
    images = tiny_generator(latent_dim=5, out_channels=2)(labels, latents)
    assert images.shape == (4, 2, 64, 96) and images.abs().max() <= 1
    assert tiny_generator(block_out_channels=(8,))(labels[:, :33, :35]).shape == (2, 1, 33, 35)
    assert tiny_generator(num_labels=10)(labels + 2).shape == (2, 1, 64, 96)


@torch.no_grad()
def test_a_batch_equals_single_images(labels, latents):
    generator = tiny_generator(latent_dim=5)
    images = generator(labels, latents)
    for index in range(4):
        torch.testing.assert_close(
            images[index : index + 1], generator(labels[index // 2][None], latents[index : index + 1])
        )
    assert not torch.allclose(images[0], images[1], atol=1e-3)  # of one map, by their noise


@torch.no_grad()
def test_a_nodule_of_one_pixel_changes_the_image():
    lung = torch.full((1, 64, 96), 4)
    nodule = lung.clone()
    nodule[0, 31, 51] = 7
    generator = tiny_generator()
    change = (generator(nodule) - generator(lung)).abs()[0, 0]
    assert change[25:38, 45:58].max() > 1e-2


@torch.no_grad()
def test_a_label_reaches_no_further_than_the_convolutions():
    """Without the group norms, which see the whole image: 4 coarse pixels in the first block, then 2 of each finer level, then 1."""
    generator = tiny_generator()
    for module in generator.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda hidden_states: hidden_states.clone()
    lung = torch.full((1, 64, 128), 4)
    other = lung.clone()
    other[:, :, :4] = 3
    change = (generator(other) - generator(lung)).abs()[0, 0].amax(dim=0)
    reach = 4 + 4 * 4 + 2 * 2 + 2 + 1
    assert change[:4].min() > 0 and change[4:reach].max() > 0 and change[reach:].max() == 0


def test_gradient_checkpointing_gives_the_same_gradients(labels, latents):
    gradients = []
    for checkpointing in (False, True):
        generator = tiny_generator(latent_dim=5).train()
        if checkpointing:
            generator.enable_gradient_checkpointing()
        generator(labels, latents).pow(2).mean().backward()
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


def test_a_saved_pipeline_makes_the_same_images(tmp_path, labels):
    pipe = tiny_pipeline(latent_dim=5)
    pipe.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "SpadeGanPipeline" and index["spade_generator"] == [
        "lsdm_diffusers.models.spade_gan",
        "SpadeGenerator",
    ]
    loaded = SpadeGanPipeline.from_pretrained(tmp_path)
    first, second = (
        each(labels, num_images_per_map=2, generator=seeded(3), output_type="pt").images for each in (pipe, loaded)
    )
    assert first.shape == (4, 1, 64, 96) and torch.equal(first, second)
    alone = SpadeGenerator.from_pretrained(tmp_path / "spade_generator")
    assert alone.scale_factor == 4 and alone.config.latent_dim == 5


def test_a_seed_names_an_image(labels):
    pipe = tiny_pipeline(latent_dim=5)
    images = [pipe(labels, generator=seeded(seed), output_type="pt").images for seed in (1, 1, 2)]
    assert torch.equal(images[0], images[1]) and not torch.allclose(images[0], images[2], atol=1e-3)
    listed = pipe(labels[0], num_images_per_map=2, generator=[seeded(1), seeded(1)], output_type="pt").images
    torch.testing.assert_close(listed[0], listed[1])
    plain = tiny_pipeline()
    assert torch.equal(
        plain(labels, output_type="pt").images, plain(labels, generator=seeded(5), output_type="pt").images
    )


def test_output_types_and_forms_of_maps_agree(tmp_path, labels):
    pipe, single = tiny_pipeline(), labels[0].numpy()
    unit = pipe(single, output_type="pt").images
    assert 0 <= unit.min() and unit.max() <= 1
    np.testing.assert_array_equal(pipe(single, output_type="np").images, unit.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(pipe(single, output_type="hu").images, unit[:, 0].numpy() * 1824 - 1024, atol=0.501)
    output = pipe(single)
    assert isinstance(output, LSDMPipelineOutput) and output.images[0].mode == "L"
    np.testing.assert_allclose(np.asarray(output.images[0]) / 255, unit[0, 0], atol=0.002)
    assert isinstance(pipe(single, return_dict=False), tuple)
    semantic_map_image(single).save(tmp_path / "map.png")
    forms = (
        labels[:1],
        semantic_map_image(single),
        Image.fromarray(single.astype(np.uint8)),
        tmp_path / "map.png",
        [single],
    )
    for form in forms:
        assert torch.equal(pipe(form, output_type="pt").images, unit)
    both = pipe([single, labels[1]], output_type="pt").images
    assert torch.equal(both[:1], unit) and torch.equal(both[1:], pipe(labels[1], output_type="pt").images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "latent"}, "`output_type` is 'latent', but one of pil, np, pt, hu"),
        ({"num_images_per_map": 0}, "`num_images_per_map` is 0, but a whole number of at least 1"),
        ({"num_images_per_map": 2}, "`num_images_per_map` is 2, but `spade_generator` has `latent_dim` 0"),
        ({"generator": [seeded(0)]}, "`generator` is a list of 1, but the call makes 2 images"),
        ({"semantic_map": []}, "`semantic_map` is an empty list"),
        ({"semantic_map": torch.full((64, 64), 9)}, "contains the value 9"),
        (
            {"semantic_map": torch.zeros(64, 66, dtype=torch.long)},
            "`semantic_map` is 64x66 pixels, but height and width must be multiples of 4",
        ),
    ],
)
def test_wrong_arguments_of_the_pipeline_are_named(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline()(**{"semantic_map": labels, **arguments})


@torch.no_grad()
def test_the_discriminator_judges_image_and_map_at_every_scale(labels):
    torch.manual_seed(0)
    discriminator = MultiscaleDiscriminator(channels=4, num_scales=2)
    for _ in range(20):  # of power iteration
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


def test_feature_matching_is_l1_of_all_but_the_logits():
    """Layers of constant differences 1 and 2 at the first scale, 3 at the second, logits left out: ((1 + 2) + 3) / 2."""
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
    assert torch.equal(image, generator(labels))
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


SIZES = (
    "--block_out_channels",
    8,
    8,
    16,
    "--norm_num_groups",
    4,
    "--spade_hidden_channels",
    8,
    "--disc_channels",
    4,
    "--crop_size",
    64,
)


def test_script_resumes_to_the_very_weights(tmp_path, train, dataset):
    common = [
        "--dataset_name",
        dataset,
        *SIZES,
        "--latent_dim",
        2,
        "--train_batch_size",
        2,
        "--max_train_steps",
        4,
        "--perceptual",
        "efficientnet",
    ]
    common += [
        "--random_flip",
        "--blank_background",
        "--nodule_probability",
        0.5,
        "--validation_steps",
        2,
        "--checkpoints_total_limit",
        1,
    ]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train("train_spade_gan.py", *common, "--output_dir", whole, "--checkpointing_steps", 3)
    (resumed / "checkpoint-3").parent.mkdir()
    assert [path.name for path in whole.glob("checkpoint-*")] == ["checkpoint-3"]
    (whole / "checkpoint-3").rename(resumed / "checkpoint-3")
    # decoded as they are drawn or once, the slices are the same
    train(
        "train_spade_gan.py",
        *common,
        "--output_dir",
        resumed,
        "--resume_from_checkpoint",
        "latest",
        "--no-keep_in_memory",
    )
    assert_same_weights(whole / WEIGHTS, resumed / WEIGHTS)
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4]
    for line in log:
        assert (
            0 < line["l1_hu"] < 1824
            and {"psnr", "train_adversarial", "train_features", "train_perceptual", "train_discriminator"}
            < line.keys()
        )
    assert Image.open(whole / "validation-4.png").size == (2 * 96, 2 * 96)
    pipe = SpadeGanPipeline.from_pretrained(whole / "pipeline")
    assert pipe(torch.zeros(96, 64, dtype=torch.long), num_images_per_map=2, output_type="hu").images.shape == (
        2,
        96,
        64,
    )
    card = (whole / "pipeline" / "README.md").read_text()
    assert (
        "SpadeGanPipeline.from_pretrained" in card
        and "| l1_hu |" in card
        and "validation.png" in card
        and str(dataset) not in card
    )


def test_script_trains_from_a_stream_with_every_other_flag(tmp_path, train, dataset):
    flags = [
        "--train_data_dir",
        dataset,
        *SIZES,
        "--train_batch_size",
        1,
        "--max_train_steps",
        2,
        "--perceptual",
        "none",
        "--streaming",
    ]
    flags += [
        "--mixed_precision",
        "bf16",
        "--gradient_checkpointing",
        "--gradient_accumulation_steps",
        2,
        "--no-use_ema",
        "--feature_weight",
        5,
    ]
    flags += [
        "--lr_scheduler",
        "linear",
        "--lr_warmup_steps",
        1,
        "--disc_scales",
        1,
        "--max_grad_norm",
        0.5,
        "--seed",
        3,
    ]
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
            "The loss is inf and the discriminator's .* at step 0; the last good checkpoint is in",
        ),
    ],
)
def test_script_stops_and_says_why(tmp_path, train, dataset, flags, error, message):
    with pytest.raises(error, match=message):
        train(
            "train_spade_gan.py",
            "--dataset_name",
            dataset,
            *SIZES,
            "--perceptual",
            "none",
            *flags,
            "--output_dir",
            tmp_path / "run",
        )
