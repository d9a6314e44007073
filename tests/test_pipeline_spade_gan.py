"""The SPADE baseline's pipeline: saving, seeds, output types, forms of maps, and errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lsdm_diffusers import LSDMPipelineOutput, SpadeGanPipeline, SpadeGenerator
from lsdm_diffusers.semantic_map import semantic_map_image

from .conftest import tiny_generator


def tiny_pipeline(**changes):
    return SpadeGanPipeline(tiny_generator(**changes))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def labels():
    return torch.randint(0, 8, (2, 64, 96), generator=torch.Generator().manual_seed(0))


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
