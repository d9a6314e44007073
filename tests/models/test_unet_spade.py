"""The U-Net: reuse of the modulation, what the map changes, gradients, saving and errors."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from lsdm_diffusers import SpadeUNet2DModel

from ..conftest import tiny_unet


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 16, 16, generator=generator), torch.randint(0, 8, (2, 64, 64), generator=generator)


@pytest.mark.parametrize("spade_blocks", ["all", "mid_up", "up", "none"])
def test_reused_modulation_equals_recomputed_bit_for_bit(spade_blocks, inputs):
    sample, labels = inputs
    unet = tiny_unet(spade_blocks=spade_blocks)
    with torch.no_grad():
        recomputed = unet(sample, 7, semantic_map=labels).sample
        reused = unet(
            sample, 7, modulation=unet.compute_modulation(labels, 16) if spade_blocks != "none" else ()
        ).sample
    assert torch.equal(recomputed, reused)
    assert recomputed.shape == (2, 3, 16, 16)


def test_spade_blocks_select_where_the_map_is_seen():
    counts = [len(tiny_unet(spade_blocks=where)._modulated_blocks()) for where in ("none", "up", "mid_up", "all")]
    assert counts == sorted(set(counts)) and counts[0] == 0


def test_map_changes_the_output_and_several_images_of_a_map_equal_single_ones(inputs):
    sample, labels = inputs
    unet = tiny_unet()
    with torch.no_grad():
        first = unet(sample, 7, semantic_map=labels[:1]).sample
        for index in range(2):
            torch.testing.assert_close(
                first[index : index + 1], unet(sample[index : index + 1], 7, semantic_map=labels[:1]).sample
            )
        other = unet(sample, 7, semantic_map=labels).sample
    assert not torch.allclose(first[1], other[1])


def test_nodule_of_one_pixel_changes_the_output(inputs):
    sample, _ = inputs
    unet = tiny_unet()
    lung = torch.full((1, 64, 64), 4)
    nodule = lung.clone()
    nodule[0, 32, 32] = 7
    with torch.no_grad():
        assert not torch.equal(
            unet(sample[:1], 7, semantic_map=lung).sample, unet(sample[:1], 7, semantic_map=nodule).sample
        )


def test_gradient_checkpointing_gives_the_same_gradients(inputs):
    sample, labels = inputs
    gradients = []
    for checkpointing in (False, True):
        unet = tiny_unet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(sample, torch.tensor([3, 500]), semantic_map=labels).sample.pow(2).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in unet.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize(("size", "variant"), [("10GB", None), ("40KB", None), ("10GB", "fp16"), ("40KB", "fp16")])
def test_save_and_load_whole_sharded_and_variant(tmp_path, inputs, size, variant):
    unet = tiny_unet()
    unet.save_pretrained(tmp_path, max_shard_size=size, variant=variant)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "40KB")
    loaded = SpadeUNet2DModel.from_pretrained(tmp_path, variant=variant)
    assert tuple(loaded.config.block_out_channels) == unet.config.block_out_channels
    with torch.no_grad():
        assert torch.equal(
            loaded(inputs[0], 7, semantic_map=inputs[1]).sample, unet(inputs[0], 7, semantic_map=inputs[1]).sample
        )


def test_ema_of_the_model_saves_and_loads(tmp_path):
    unet = tiny_unet()
    ema = EMAModel(unet.parameters(), model_cls=SpadeUNet2DModel, model_config=unet.config)
    ema.step(unet.parameters())
    ema.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, SpadeUNet2DModel)
    assert all(torch.equal(a, b) for a, b in zip(loaded.shadow_params, ema.shadow_params, strict=True))


def test_repeated_blocks_can_be_compiled(inputs, monkeypatch):
    compiled = []
    unet = tiny_unet()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *args, **kwargs: compiled.append(type(self).__name__))
    unet.compile_repeated_blocks()
    assert set(compiled) == {"SpadeResnetBlock2D"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((1, 64, 64), 9), "value 9"),
        (torch.zeros(1, 64, 64), "float32"),
        (torch.zeros(64, 64, dtype=torch.long), "shape"),
        (torch.zeros(1, 60, 60, dtype=torch.long), "60x60"),
    ],
)
def test_bad_maps_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_unet().compute_modulation(labels, 16)


def test_bad_arguments_are_named(inputs):
    with pytest.raises(ValueError, match="'some'"):
        tiny_unet(spade_blocks="some")
    with pytest.raises(ValueError, match="`semantic_map` and `modulation`"):
        tiny_unet()(inputs[0], 1)
    with pytest.raises(ValueError, match="15x16"):
        tiny_unet()(inputs[0][:, :, :15], 1, semantic_map=inputs[1])


def test_other_numbers_of_labels():
    unet = SpadeUNet2DModel(
        block_out_channels=(16, 32),
        attention_levels=(False, False),
        norm_num_groups=8,
        attention_head_dim=8,
        num_labels=10,
    )
    labels = torch.randint(0, 10, (1, 16, 16))
    assert unet(torch.randn(1, 6, 16, 16), 3, semantic_map=labels).sample.shape == (1, 3, 16, 16)
