"""Guidance by the contrast of labels and of ratings, and the choice of a method."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from lsdm_diffusers import LSDMGuidedPipeline, find_nodules, reshape_nodule, small_checkpoint
from lsdm_diffusers.guidance_methods.choice import choose_methods
from lsdm_diffusers.guidance_methods.classifier_free import GROUPS, RatingGuidance, rating_variants
from lsdm_diffusers.guidance_methods.contrast import LabelContrast, paint_opposite
from lsdm_diffusers.guidance_methods.map_variants import MapVariant, MapVariants
from lsdm_diffusers.guidance_methods.step import GuidedStep
from lsdm_diffusers.latents import encode_map
from lsdm_diffusers.models.group_norm import WindowedGroupNorm, recorded_norms, replayed_norms
from lsdm_diffusers.nodule_batch import requested_nodules

from .conftest import BETAS, sample, tiny_pipeline, tiny_unet

MALIGNANT = {"malignancy": "malignant"}


@pytest.fixture(scope="module")
def shipped():
    pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def contrast(pipe, semantic_map, features=MALIGNANT, **arguments):
    return sample(pipe, semantic_map, features, guidance_method={"malignancy": "contrast"}, **arguments)


def painted(semantic_map, label):
    return np.where(semantic_map >= 5, label, semantic_map).astype(np.uint8)


def test_scale_0_is_the_unguided_slice_of_the_map_as_it_is(pipe, semantic_map):
    assert np.array_equal(contrast(pipe, semantic_map, guidance_scale=0.0), sample(pipe, semantic_map))


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False, **BETAS),
        DDIMScheduler(clip_sample=False, prediction_type="v_prediction", **BETAS),
        DDIMScheduler(clip_sample=False, prediction_type="sample", **BETAS),
        EulerDiscreteScheduler(**BETAS),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda scheduler: f"{type(scheduler).__name__}-{scheduler.config.get('prediction_type', 'flow')}",
)
def test_a_model_that_knows_its_label_gets_the_closed_form(monkeypatch, scheduler, semantic_map):
    """Where v = L(label) everywhere, contrast gives L(y) + s·(L(y) - L(ȳ)) inside nodules, for every prediction."""
    pipe = tiny_pipeline(scheduler=scheduler)
    outputs = []

    def predict(model_input, timestep, modulation):
        value = modulation[0][0][0].amax((1, 2, 3))
        value = value.repeat_interleave(len(model_input) // len(value))
        return type("Output", (), {"sample": value[:, None, None, None].expand(-1, 3, *model_input.shape[2:])})

    def modulation(labels, size, ratings=None):
        pooled = torch.nn.functional.adaptive_max_pool2d(labels[:, None].float(), size)
        return (((pooled, pooled), (pooled, pooled)),)

    monkeypatch.setattr(pipe.unet, "forward", predict)
    monkeypatch.setattr(pipe.unet, "compute_modulation", modulation)
    step = pipe.scheduler.step
    del step

    def record(pipe, index, timestep, tensors):
        return {}

    original = type(scheduler).step

    def watched(self, model_output, *arguments, **named):
        outputs.append(model_output)
        return original(self, model_output, *arguments, **named)

    monkeypatch.setattr(type(scheduler), "step", watched)
    one_nodule = semantic_map.copy()
    one_nodule[0:6, 0:6] = 4
    contrast(pipe, one_nodule, {"malignancy": "benign"}, guidance_scale=2.0, callback_on_step_end=record)
    guided = outputs[-1]
    assert guided.shape[-2:] == (24, 32)
    assert guided[0, :, 13, 18].tolist() == [5 + 2.0 * (5 - 7)] * 3  # in the nodule
    assert guided[0, :, 2, 20].tolist() == [5.0] * 3  # far from it


def test_it_moves_nodules_of_different_wishes_in_their_own_areas_alone(pipe, semantic_map):
    both = [[{"malignancy": "malignant"}, {"malignancy": "benign"}]]
    first = [[{"malignancy": "malignant"}, None]]
    latents = {
        name: contrast(pipe, semantic_map, wish, num_inference_steps=1, output_type="latent", guidance_scale=1.0)
        for name, wish in (("both", both), ("first", first), ("unguided", None))
    }
    # The fixture's map has these very labels, so that painting changes nothing.
    changed = (latents["first"] - latents["unguided"]).abs().amax((0, 1)) > 0
    rows, columns = changed.nonzero().T
    assert changed.any() and rows.max() <= 2 and columns.max() <= 2
    changed = (latents["both"] - latents["unguided"]).abs().amax((0, 1)) > 0
    assert changed[11:16, 16:22].any() and not changed[4:11].any() and not changed[17:].any()


def test_a_batch_gives_the_slices_of_its_maps_alone(pipe, semantic_map):
    maps = [semantic_map, semantic_map[:, ::-1].copy()]
    wishes = [{"malignancy": "benign"}, [{"malignancy": "malignant"}, None]]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3, 4)]
    batch = contrast(pipe, maps, wishes, num_images_per_map=2, generator=generators).astype(int)
    for index, seed in enumerate((1, 2, 3, 4)):
        alone = contrast(pipe, maps[index // 2], [wishes[index // 2]], seed=seed).astype(int)
        assert np.abs(batch[index] - alone[0]).max() <= 1
    again = contrast(
        pipe, maps, wishes, num_images_per_map=2, generator=[torch.Generator().manual_seed(s) for s in (1, 2, 3, 4)]
    )
    assert np.array_equal(batch, again)


def test_an_indeterminate_nodule_is_drawn_by_its_label_alone(pipe, semantic_map):
    painted = np.where(semantic_map >= 5, 6, semantic_map)
    asked = contrast(pipe, semantic_map, {"malignancy": 3}).astype(int)
    np.testing.assert_allclose(asked, sample(pipe, painted), atol=1)


def test_methods_of_several_features_guide_one_call(pipe, semantic_map):
    features = {"malignancy": "malignant", "texture": 5}
    both = contrast(pipe, semantic_map, features)
    only_contrast = contrast(pipe, semantic_map, features, guidance_scale={"texture": 0.0})
    assert not np.array_equal(both, only_contrast)
    assert np.array_equal(only_contrast, contrast(pipe, semantic_map, MALIGNANT))


def test_a_callback_ends_the_contrast(pipe, semantic_map):
    def end(pipe, index, timestep, tensors):
        pipe._guidance_scale = 0.0
        return {}

    ended = contrast(pipe, semantic_map, callback_on_step_end=end)
    assert not np.array_equal(ended, contrast(pipe, semantic_map))


def test_it_works_in_bf16_and_without_gradients(pipe, semantic_map):
    pipe.unet.to(torch.bfloat16)
    pipe.vae.to(torch.bfloat16)
    with torch.inference_mode():
        assert contrast(pipe, semantic_map).shape == (1, 96, 128)


def test_the_norm_of_a_window_by_the_statistics_of_the_whole_is_a_window_of_the_norm():
    torch.manual_seed(0)
    norm = WindowedGroupNorm(4, 8)
    torch.nn.init.normal_(norm.weight)
    pictures = torch.randn(2, 8, 12, 12) * 3 + 1
    with torch.no_grad(), recorded_norms() as statistics:
        whole = norm(pictures)
    assert torch.equal(whole, torch.nn.functional.group_norm(pictures, 4, norm.weight, norm.bias, norm.eps))
    with torch.no_grad(), replayed_norms(statistics, torch.tensor([1])):
        window = norm(pictures[1:, :, 2:6, 3:9])
    torch.testing.assert_close(window, whole[1:, :, 2:6, 3:9], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_windows_agree_with_whole_slices_and_stay_closer_with_the_statistics_of_the_whole(shipped):
    """Relative error of M·[v(m_y) - v(m_ȳ)] inside the nodule; the attention of a window sees the window alone."""
    labels = np.full((512, 512), 4, dtype=np.uint8)
    labels[:, :60], labels[400:] = 1, 2
    labels[200:216, 250:268] = 7
    requests = requested_nodules(labels[None], MALIGNANT)
    opposite = MapVariant(torch.from_numpy(paint_opposite(labels[None], requests)), None, requests)
    whole = MapVariants(shipped.unet, shipped.vae, [opposite], 1, windowed=False)
    windows = MapVariants(shipped.unet, shipped.vae, [opposite], 1)
    assert windows.windowed and not whole.windowed
    shipped.scheduler.set_timesteps(10)
    timestep, map_tensor = shipped.scheduler.timesteps[6], torch.from_numpy(labels)[None]
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    map_latents = encode_map(shipped.vae, map_tensor)
    modulation = shipped.unet.compute_modulation(map_tensor.long(), 128)
    with recorded_norms() as norms:
        output = shipped.unet(torch.cat([noise, map_latents], 1), timestep, modulation=modulation).sample
    step = GuidedStep(6, timestep, noise, noise, output, norms, {"malignancy": 1.0})
    exact, close = whole.differences(step)[0], windows.differences(step)[0]
    assert exact.abs().max() > 0 and torch.equal(exact != 0, close != 0)
    assert (close - exact).norm() <= 0.3 * exact.norm()


def test_more_windows_than_a_slice_holds_are_evaluated_as_whole_slices(pipe, semantic_map):
    requests = requested_nodules(semantic_map[None], MALIGNANT)
    opposite = MapVariant(torch.from_numpy(paint_opposite(semantic_map[None], requests)), None, requests)
    assert not MapVariants(pipe.unet, pipe.vae, [opposite], 1).windowed  # 24x32 latents hold no 32x32 window
    large = np.full((256, 256), 4, dtype=np.uint8)
    for y in (20, 120, 220):
        for x in (20, 120):
            large[y : y + 10, x : x + 10] = 5
    requests = requested_nodules(large[None], MALIGNANT)
    opposite = MapVariant(torch.from_numpy(paint_opposite(large[None], requests)), None, requests)
    assert not MapVariants(pipe.unet, pipe.vae, [opposite], 1).windowed  # 6 windows of 32x32 in 64x64


def test_contrast_takes_part_of_the_scale_only(pipe):
    step = GuidedStep(0, torch.tensor(1), *[torch.zeros(1, 3, 8, 8)] * 3, {}, {"malignancy": 3.0})
    difference = torch.ones(1, 3, 8, 8)
    fixed = type("Fixed", (), {"differences": lambda self, step: [difference]})()
    assert torch.equal(LabelContrast(fixed)(torch.zeros(1, 3, 8, 8), step), -3 * difference)


def test_ratings_add_the_difference_of_each_group_with_its_weight_inside_its_interval():
    step = GuidedStep(
        1, torch.tensor(1), *[torch.zeros(1, 3, 8, 8)] * 3, {}, {"malignancy": 2.0, "texture": 0.5, "lobulation": 4.0}
    )
    differences = [torch.full((1, 3, 8, 8), value) for value in (1.0, 10.0, 100.0)]
    fixed = type("Fixed", (), {"differences": lambda self, step: differences})()
    groups = {"malignancy": ["malignancy"], "texture": ["texture"], "outline": ["lobulation"]}
    intervals = {"malignancy": (0.0, 9.0), "texture": (0.0, 9.0), "outline": (2.0, 9.0)}
    guide = RatingGuidance(groups, fixed, [5.0, 1.0], intervals)
    assert guide(torch.zeros(1, 3, 8, 8), step).unique().tolist() == [2.0 + 5.0]


def test_rating_variants_tell_one_group_each(semantic_map):
    requests = requested_nodules(semantic_map[None], {"malignancy": 1, "spiculation": 4, "lobulation": 2})
    variants = rating_variants(semantic_map[None], requests, torch.device("cpu"))
    assert list(variants) == ["malignancy", "outline"] and set(variants) < set(GROUPS)
    given = {group: variant.ratings[0].amax((1, 2)).tolist() for group, variant in variants.items()}
    assert given == {"malignancy": [1, 0, 0, 0], "outline": [0, 2, 4, 0]}
    assert variants["malignancy"].labels[0, 1, 1] == 5 and variants["outline"].labels[0, 1, 1] == 7


def test_ratings_guide_a_u_net_that_sees_them(semantic_map):
    unet = tiny_unet(rating_channels=4)
    torch.manual_seed(3)
    for name, weight in unet.named_parameters():
        if "rating_conv" in name:
            torch.nn.init.normal_(weight)
    pipe = tiny_pipeline(unet=unet)
    rated = {"guidance_method": "classifier_free"}
    unguided = sample(pipe, semantic_map)
    assert np.array_equal(sample(pipe, semantic_map, {"texture": 1}, guidance_scale=0.0, **rated), unguided)
    one, five = (sample(pipe, semantic_map, {"texture": rating}, **rated) for rating in (1, 5))
    assert not np.array_equal(one, five)


@pytest.mark.parametrize(
    "method, features, message",
    [
        ("nothing", MALIGNANT, "`guidance_method` is 'nothing'"),
        ({"size": "classifier"}, MALIGNANT, "`guidance_method` has the key 'size'"),
        ({"texture": "contrast"}, MALIGNANT, "labels differ by malignancy alone"),
        ("contrast", {"texture": 4}, "labels differ by malignancy alone"),
        ("classifier_free", {"texture": 4}, "has 0 rating channels"),
        (3, MALIGNANT, "`guidance_method` is a int"),
    ],
)
def test_what_a_method_cannot_do_is_refused(pipe, semantic_map, method, features, message):
    with pytest.raises(ValueError, match=message):
        sample(pipe, semantic_map, features, guidance_method=method)


def test_the_recommended_methods_survive_saving(tmp_path, semantic_map):
    pipe = tiny_pipeline(guidance_methods={"malignancy": "contrast"})
    assert not pipe.recommended_methods() == choose_methods(None, None)
    pipe.save_pretrained(tmp_path)
    loaded = LSDMGuidedPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.recommended_methods()["malignancy"] == "contrast"
    assert loaded.recommended_methods()["texture"] == "classifier"
    drawn = sample(pipe, semantic_map, MALIGNANT)
    np.testing.assert_allclose(sample(loaded, semantic_map, MALIGNANT), drawn, atol=1)  # HU, rounded
    named = sample(tiny_pipeline(), semantic_map, MALIGNANT, guidance_method="contrast")
    assert np.array_equal(drawn, named)
    assert set(tiny_pipeline().recommended_methods().values()) == {"classifier"}


def test_an_outline_is_drawn_into_the_map_before_sampling(pipe):
    labels = np.full((96, 128), 4, dtype=np.uint8)
    labels[30:44, 40:56] = 7
    wish, method = {"spiculation": 5, "texture": 2}, {"spiculation": "outline"}
    drawn, nodule = reshape_nodule(labels, find_nodules(labels)[0], spiculation=5)
    assert (drawn != labels).any()

    def call(semantic_map, features, **arguments):
        generator = torch.Generator().manual_seed(3)
        return pipe(semantic_map, features, 2, generator=generator, output_type="hu", **arguments)

    asked = call(labels, wish, guidance_method=method)
    np.testing.assert_array_equal(asked.semantic_maps, drawn[None])
    by_hand = call(drawn, {"texture": 2})
    np.testing.assert_array_equal(asked.images, by_hand.images)
    off = call(labels, {"spiculation": 5}, guidance_method=method, guidance_scale=0.0)
    np.testing.assert_array_equal(off.images, call(labels, None).images)
    np.testing.assert_array_equal(off.semantic_maps, labels[None])


def test_a_nodule_too_small_for_an_outline_stays_and_a_warning_says_so(pipe, semantic_map):
    with pytest.warns(UserWarning, match="asks for lobulation, but the nodule at .* only from 60 pixels"):
        output = pipe(semantic_map, {"lobulation": 5}, 1, guidance_method={"lobulation": "outline"})
    np.testing.assert_array_equal(output.semantic_maps[0][:20], semantic_map[:20])


def test_an_outline_shows_two_features_alone(pipe, semantic_map):
    with pytest.raises(ValueError, match="an outline shows lobulation and spiculation alone"):
        pipe(semantic_map, {"texture": 5}, 1, guidance_method="outline")
