"""The U-Net: reuse of the modulation, what the map changes, gradients, saving and errors."""

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import Attention
from diffusers.training_utils import EMAModel

from lsdm_diffusers import SpadeUNet2DModel
from lsdm_diffusers.models.self_attention import SelfAttention2D
from lsdm_diffusers.models.unet_spade import pool_ratings

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


def offloaded(model, folder, offload_type, num_blocks):
    blocks = {"num_blocks_per_group": num_blocks} if offload_type == "block_level" else {}
    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_type=offload_type,
        offload_to_disk_path=str(folder),
        **blocks,
    )
    return model


@pytest.mark.parametrize(
    ("offload_type", "num_blocks"), [("block_level", 1), ("block_level", 2), ("leaf_level", None)]
)
@pytest.mark.parametrize("changes", [{}, {"spade_blocks": "up"}, {"spade_blocks": "none"}, {"layers_per_block": 2}])
@torch.no_grad()
def test_group_offload_to_disk_gives_the_same_output(tmp_path, inputs, offload_type, num_blocks, changes):
    sample, labels = inputs
    expected = tiny_unet(**changes)(sample, 7, semantic_map=labels).sample
    unet = offloaded(tiny_unet(**changes), tmp_path, offload_type, num_blocks)
    assert torch.equal(unet(sample, 7, semantic_map=labels).sample, expected)
    modulation = unet.compute_modulation(labels, 16)
    for _ in range(2):
        assert torch.equal(unet(sample, 7, modulation=modulation).sample, expected)


@pytest.mark.parametrize(("offload_type", "num_blocks"), [("block_level", 1), ("leaf_level", None)])
@torch.no_grad()
def test_group_offload_to_disk_of_the_unet_of_diffusers(tmp_path, inputs, offload_type, num_blocks):
    """The yardstick of the test above: the same calls leave diffusers' own U-Net as it is."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    ).eval()
    expected = unet(inputs[0], 7).sample
    assert torch.equal(offloaded(unet, tmp_path, offload_type, num_blocks)(inputs[0], 7).sample, expected)


class WithMap(torch.nn.Module):
    """`SpadeUNet2DModel` as an exporter takes it: tensors in, a tensor out."""

    def __init__(self, unet, with_map):
        super().__init__()
        self.unet, self.with_map = unet, with_map

    def forward(self, sample, timestep, condition):
        given = {"semantic_map": condition} if self.with_map else {"modulation": condition}
        return self.unet(sample, timestep, **given, return_dict=False)[0]


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("with_map", [True, False])
def test_exported_program_gives_the_same_output(inputs, with_map, strict):
    sample, labels = inputs
    unet, timestep = tiny_unet(), torch.tensor([7, 7])
    with torch.no_grad():
        condition = labels if with_map else unet.compute_modulation(labels, 16)
        program = torch.export.export(WithMap(unet, with_map), (sample, timestep, condition), strict=strict)
        expected = unet(sample, 7, semantic_map=labels).sample
        torch.testing.assert_close(program.module()(sample, timestep, condition), expected)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_as_one_graph_gives_the_same_output(inputs):
    sample, labels = inputs
    expected = tiny_unet()(sample, 7, semantic_map=labels).sample
    compiled = torch.compile(tiny_unet(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(sample, torch.tensor([7, 7]), semantic_map=labels).sample, expected)


@torch.no_grad()
def test_attention_backend_is_used(inputs):
    sample, labels = inputs
    unet = tiny_unet()
    expected = unet(sample, 7, semantic_map=labels).sample
    unet.set_attention_backend("_native_math")
    try:
        assert {processor._attention_backend for processor in unet.attn_processors.values()} == {"_native_math"}
        torch.testing.assert_close(unet(sample, 7, semantic_map=labels).sample, expected)
    finally:
        unet.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    assert torch.equal(unet(sample, 7, semantic_map=labels).sample, expected)


def test_attention_processors_are_named_and_replaced(inputs):
    class Passing:
        def __call__(self, attention, hidden_states):
            return hidden_states

    sample, labels = inputs
    unet = tiny_unet()
    names = {"down_attentions.1.processor", "mid_attention.processor"}
    names |= {"up_attentions.0.processor", "up_attentions.1.processor"}
    assert set(unet.attn_processors) == names
    with torch.no_grad():
        before = unet(sample, 7, semantic_map=labels).sample
        unet.set_attn_processor(Passing())
        assert not torch.allclose(unet(sample, 7, semantic_map=labels).sample, before)


@torch.no_grad()
def test_fused_projections_give_the_same_output(inputs):
    sample, labels = inputs
    unet = tiny_unet()
    before, keys = unet(sample, 7, semantic_map=labels).sample, set(unet.state_dict())
    unet.fuse_qkv_projections()
    assert "mid_attention.to_qkv.weight" in unet.state_dict()
    torch.testing.assert_close(unet(sample, 7, semantic_map=labels).sample, before)
    unet.unfuse_qkv_projections()
    assert set(unet.state_dict()) == keys
    assert torch.equal(unet(sample, 7, semantic_map=labels).sample, before)


@torch.no_grad()
def test_attention_equals_that_of_diffusers_with_the_same_weights():
    torch.manual_seed(0)
    theirs = Attention(
        16, heads=2, dim_head=8, norm_num_groups=4, eps=1e-5, residual_connection=True, bias=True
    ).eval()
    ours = SelfAttention2D(16, heads=2, num_groups=4, eps=1e-5)
    ours.load_state_dict(theirs.state_dict())
    hidden_states = torch.randn(2, 16, 6, 10)
    torch.testing.assert_close(ours(hidden_states), theirs(hidden_states))


def test_lora_trains_saves_and_loads(tmp_path, inputs):
    peft = pytest.importorskip("peft")
    sample, labels = inputs
    unet = tiny_unet()
    with torch.no_grad():
        plain = unet(sample, 7, semantic_map=labels).sample
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v", "gamma_beta_conv"]))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1)
    for _ in range(2):  # the first step leaves zero the gradient of the matrix that begins as random numbers
        unet(sample, 7, semantic_map=labels).sample.pow(2).mean().backward()
        optimizer.step()
    with torch.no_grad():
        adapted = unet(sample, 7, semantic_map=labels).sample
        assert not torch.allclose(adapted, plain)
        unet.save_lora_adapter(tmp_path)
        loaded = tiny_unet()
        loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        torch.testing.assert_close(loaded(sample, 7, semantic_map=labels).sample, adapted)
        loaded.disable_lora()
        torch.testing.assert_close(loaded(sample, 7, semantic_map=labels).sample, plain)


def nodule_ratings(value, channel=0):
    ratings = torch.zeros(1, 4, 64, 64)
    ratings[:, channel, 20:40, 20:40] = value
    return ratings


def with_rating_weights(unet):
    """A U-Net whose rating weights are trained: no longer zero."""
    torch.manual_seed(3)
    for name, parameter in unet.named_parameters():
        if "rating_conv" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return unet


def test_new_rating_channels_leave_every_picture_as_it_was(inputs):
    sample, labels = inputs[0][:1], inputs[1][:1]
    old, new = tiny_unet(), tiny_unet(rating_channels=4)
    missing, unexpected = new.load_state_dict(old.state_dict(), strict=False)
    assert not unexpected and all("rating_conv" in name for name in missing)
    with torch.no_grad():
        expected = old(sample, 7, semantic_map=labels).sample
        assert torch.equal(new(sample, 7, semantic_map=labels).sample, expected)
        assert torch.equal(new(sample, 7, semantic_map=labels, nodule_ratings=nodule_ratings(5)).sample, expected)


def test_ratings_change_the_picture_and_absent_ones_do_not(inputs):
    sample, labels = inputs[0][:1], inputs[1][:1]
    unet = with_rating_weights(tiny_unet(rating_channels=4))
    with torch.no_grad():
        none = unet(sample, 7, semantic_map=labels).sample
        torch.testing.assert_close(
            unet(sample, 7, semantic_map=labels, nodule_ratings=torch.zeros(1, 4, 64, 64)).sample, none
        )
        given = [unet(sample, 7, semantic_map=labels, nodule_ratings=nodule_ratings(r)).sample for r in (1, 3, 5)]
        reused = unet(sample, 7, modulation=unet.compute_modulation(labels, 16, nodule_ratings(5))).sample
    assert torch.equal(reused, given[-1])
    for changed in given:  # 3 is given too, though its value is 0: the mask says so
        assert not torch.allclose(changed, none)
    assert not torch.allclose(given[0], given[2])


def test_pooled_ratings_are_values_and_masks():
    ratings = nodule_ratings(1, channel=1) + nodule_ratings(4.5, channel=2)
    pooled = pool_ratings(ratings, (16, 16))
    assert pooled.shape == (1, 8, 16, 16)
    inside, outside = pooled[0, :, 7, 7], pooled[0, :, 0, 0]
    assert inside.tolist() == [0, -1, 0.75, 0, 0, 1, 1, 0] and outside.tolist() == [0] * 8


@pytest.mark.parametrize(
    ("channels", "ratings", "message"),
    [
        (0, nodule_ratings(3), "this U-Net has no `rating_channels`"),
        (4, nodule_ratings(6), r"contains the value 6, but a rating 1\.\.5, or 0"),
        (4, nodule_ratings(float("nan")), "contains the value nan"),
        (4, nodule_ratings(3)[:, :2], r"has shape \(1, 2, 64, 64\), but \(1, 4, H, W\) is needed"),
        (4, nodule_ratings(3)[..., :60], "64x60 pixels cannot be max-pooled to 16x16"),
    ],
)
def test_bad_ratings_are_named(channels, ratings, message):
    with pytest.raises(ValueError, match=message):
        tiny_unet(rating_channels=channels).compute_modulation(torch.zeros(1, 64, 64, dtype=torch.long), 16, ratings)
