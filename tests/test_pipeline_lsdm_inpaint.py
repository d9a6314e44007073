"""Editing real slices: the masked part is drawn anew, everything else stays to the bit."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

from lsdm_diffusers import (
    LSDMGuidedPipeline,
    LSDMInpaintPipeline,
    change_nodule,
    find_nodules,
    insert_nodule,
    remove_nodule,
    small_checkpoint,
)
from lsdm_diffusers.guidance import noise_levels
from lsdm_diffusers.latents import encode_pixels
from lsdm_diffusers.outside_body import blanked
from lsdm_diffusers.pipeline_lsdm_inpaint import edit_window
from lsdm_diffusers.segmentation import semantic_map_from_hu

from .conftest import tiny_pipeline
from .synthetic_dicom import thorax_hu

SPACING = 2.8  # mm, of every fourth pixel
NOISE = {"power": [1.0] * 32, "deviation_hu": [0.0, 10.0, 10.0, 10.0, 20.0], "levels": [1.0] * 11}


@pytest.fixture(scope="module")
def inpaint():
    pipe = LSDMInpaintPipeline(**tiny_pipeline().components, ct_noise=NOISE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def hu():
    noise = np.random.default_rng(0).normal(0, 15, (128, 128))
    return (thorax_hu()[::4, ::4] + noise).round().astype(np.int16)


@pytest.fixture(scope="module")
def labels(hu):
    labels = semantic_map_from_hu(hu, SPACING)
    labels[58:66, 30:39] = 7
    return labels


def edit(pipe, hu, labels=None, seed=0, **arguments):
    options = {"num_inference_steps": 3, "window": 64, "generator": torch.Generator().manual_seed(seed)}
    return pipe(hu, semantic_map=labels, **{**options, **arguments})


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.int32])
def test_what_lies_outside_the_mask_stays_to_the_bit(inpaint, hu, labels, dtype):
    given = hu.astype(dtype)
    given[0, 0] = 3071  # metal, beyond the range of the models
    kept = given.copy()
    output = edit(inpaint, given, labels)
    assert output.images.dtype == dtype and output.images.shape == (1, 128, 128)
    mask = output.masks[0]
    assert mask[58:66, 28:41].all() and mask.sum() < 200  # the nodule and two pixels around it
    np.testing.assert_array_equal(output.images[0][~mask], given[~mask])
    assert (output.images[0][mask] != given[mask]).mean() > 0.9
    np.testing.assert_array_equal(given, kept)  # what was given is not changed


def test_a_seed_gives_one_slice_alone_or_in_a_batch(inpaint, hu, labels):
    mirrored = labels[:, ::-1].copy()
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    wishes = [{"texture": 2}, [{"malignancy": "benign"}]]
    both = edit(inpaint, np.stack([hu, hu]), np.stack([labels, mirrored]), generator=seeds, nodule_features=wishes)
    for index, one_map in enumerate((labels, mirrored)):
        alone = edit(inpaint, hu, one_map, seed=3 + index, nodule_features=[wishes[index]])
        np.testing.assert_array_equal(both.images[index], alone.images[0])
    assert not np.array_equal(both.images[0], edit(inpaint, hu, labels, seed=5).images[0])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_known_latents_are_put_back_at_the_noise_level_of_every_step(inpaint, hu, labels, scheduler, strength):
    pipe = LSDMInpaintPipeline(**{**inpaint.components, "scheduler": scheduler.from_config(inpaint.scheduler.config)})
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def watch(call, index, timestep, tensors):
        seen.append((call, tensors["latents"].clone()))
        return {}

    output = edit(pipe, hu, labels, num_inference_steps=4, strength=strength, callback_on_step_end=watch)
    call = seen[0][0]
    place = edit_window(output.masks[0], 64, 8)
    seen_hu = blanked(hu, labels)[place].astype(np.float32)
    pixels = torch.from_numpy((np.clip(seen_hu, -1024, 800) + 1024) / 912 - 1)
    with torch.no_grad():
        known = encode_pixels(pipe.vae, pixels[None, None])
    noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(0))
    alphas, sigmas = noise_levels(call.scheduler, call.scheduler.timesteps)
    first = len(alphas) - len(seen)
    assert (first > 0) == (strength < 1)
    cells = torch.nn.functional.max_pool2d(torch.from_numpy(output.masks[0][place])[None, None].float(), 4).bool()
    outside = ~cells.expand_as(known)
    for index, (_, latents) in enumerate(seen):
        level = first + index + 1
        expected = known if level == len(alphas) else alphas[level] * known + sigmas[level] * noise
        torch.testing.assert_close(latents[outside], expected[outside], atol=1e-4, rtol=0)


def test_less_strength_keeps_more_of_what_was_there(inpaint, hu, labels):
    changes = []
    for strength in (0.25, 1.0):
        output = edit(inpaint, hu, labels, num_inference_steps=8, strength=strength, grain=0)
        changes.append(np.abs(output.images[0].astype(float) - hu)[output.masks[0]].mean())
    assert changes[0] < changes[1]


def test_grain_is_added_inside_the_mask(inpaint, hu, labels):
    measured, twice, without = (edit(inpaint, hu, labels, grain=grain) for grain in (None, 2, 0))
    for output in (measured, twice):
        added = output.images.astype(float) - without.images
        assert added[without.masks].std() > 2 and not added[~without.masks].any()


def test_a_checkpoint_and_a_pipeline_of_the_other_class_are_taken(hu, labels, inpaint):
    loaded = LSDMInpaintPipeline.from_pretrained(small_checkpoint())
    assert loaded.config.ct_noise and loaded.recommended_methods()["malignancy"] == "classifier_free"
    shared = LSDMInpaintPipeline.from_pipe(LSDMGuidedPipeline(**inpaint.components, ct_noise=NOISE))
    shared.set_progress_bar_config(disable=True)
    assert shared.unet is inpaint.unet
    np.testing.assert_array_equal(edit(shared, hu, labels).images, edit(inpaint, hu, labels).images)


def test_a_nodule_is_inserted_changed_and_removed(inpaint, hu):
    options = {"num_inference_steps": 2, "window": 64, "pixel_spacing": SPACING}
    wish = {"malignancy": "malignant"}
    inserted = insert_nodule(inpaint, hu, (62, 34), 20, wish, **options)
    (nodule,) = find_nodules(inserted.semantic_map)
    assert nodule.label == 7 and nodule.area == pytest.approx(np.pi * (10 / SPACING) ** 2, rel=0.05)
    assert inserted.mask.sum() > nodule.area
    changed = change_nodule(inpaint, inserted.hu, nodule.mask(hu.shape), {"malignancy": "benign"}, **options)
    assert find_nodules(changed.semantic_map)[0].label == 5
    removed = remove_nodule(inpaint, inserted.hu, nodule.mask(hu.shape), **options)
    assert not find_nodules(removed.semantic_map)
    for edited, before in ((inserted, hu), (changed, inserted.hu), (removed, inserted.hu)):
        np.testing.assert_array_equal(edited.hu[~edited.mask], before[~edited.mask])
        assert (edited.hu != before).any()


def test_other_nodules_of_the_map_stay(inpaint, hu, labels):
    two = labels.copy()
    two[58:66, 90:99] = 5
    first = find_nodules(labels)[0].mask(hu.shape)
    edited = change_nodule(inpaint, hu, first, {"texture": 1}, semantic_map=two, num_inference_steps=2, window=64)
    assert not edited.mask[:, 80:].any()
    np.testing.assert_array_equal(edited.semantic_map[:, 80:], two[:, 80:])


def test_a_given_mask_is_never_left(inpaint, hu, labels):
    """Neither by an outline, nor by the label that malignancy paints."""
    mask = np.zeros(hu.shape, dtype=bool)
    mask[60:64, 32:36] = True  # inside the nodule
    wish, method = {"spiculation": 5, "malignancy": "benign"}, {"spiculation": "outline", "malignancy": "contrast"}
    output = edit(inpaint, hu, labels, mask_image=mask, nodule_features=wish, guidance_method=method)
    np.testing.assert_array_equal(output.masks[0], mask)
    np.testing.assert_array_equal(output.images[0][~mask], hu[~mask])
    np.testing.assert_array_equal(output.semantic_maps[0][~mask], labels[~mask])


def test_an_edit_has_room_for_the_outline_that_is_asked_for(inpaint, hu, labels):
    nodule = find_nodules(labels)[0].mask(hu.shape)
    options = {"semantic_map": labels, "num_inference_steps": 1, "window": 64}
    method = {"guidance_method": {"spiculation": "outline"}}
    edited = change_nodule(inpaint, hu, nodule, {"spiculation": 5}, **options, **method)
    (drawn,) = find_nodules(edited.semantic_map)
    assert (drawn.mask(hu.shape) != nodule).any() and edited.mask[drawn.mask(hu.shape)].all()
    assert edited.mask[nodule].all()


def test_what_is_wrong_in_a_later_slice_is_said_before_the_first_is_drawn(inpaint, hu, labels, monkeypatch):
    monkeypatch.setattr(type(inpaint), "_draw_latents", lambda *_: pytest.fail("the first slice was drawn"))
    without = np.where(labels == 7, 4, labels)
    with pytest.raises(ValueError, match="`semantic_map` has no nodule to draw in slice 1"):
        edit(inpaint, np.stack([hu, hu]), np.stack([labels, without]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 4, 4, 4))}, "`image` has shape \\(4, 4, 4, 4\\)"),
        ({"image": np.ones((128, 128))}, "`image` has values 1.0..1.0, but Hounsfield units"),
        ({"image": np.full((128, 128), np.nan)}, "`image` has values that are not finite"),
        ({"mask_image": np.zeros((128, 128), bool)}, "`mask_image` has no pixel to draw"),
        ({"mask_image": np.zeros((64, 64), bool)}, "`mask_image` has shape \\(1, 64, 64\\)"),
        ({"semantic_map": None}, "`semantic_map` has no nodule to draw"),
        ({"semantic_map": np.full((64, 64), 4)}, "`semantic_map` has shape \\(1, 64, 64\\), but that of `image`"),
        ({"nodule_features": [[{}, {}]]}, "`nodule_features` asks for 2 nodules of a slice, but its mask touches 1"),
        ({"nodule_features": [{}, {}]}, "`nodule_features` is no dict, and no list with an entry for each of the 1"),
        ({"strength": 0}, "`strength` is 0, but a number above 0"),
        ({"feather": -1}, "`feather` is -1"),
        ({"window": 100}, "`window` is 100, but a multiple of 8"),
        ({"grain": -1}, "`grain` is -1"),
        ({"output_type": "latent"}, "`output_type` is 'latent'"),
    ],
)
def test_bad_arguments_are_named(inpaint, hu, labels, changes, message):
    arguments = {"image": hu, "semantic_map": labels, "num_inference_steps": 1, "window": 64}
    with pytest.raises(ValueError, match=message):
        inpaint(**{**arguments, **changes})


def test_the_window_grows_with_the_mask_and_stays_inside_the_slice():
    mask = np.zeros((512, 512), dtype=bool)
    mask[4:10, 500:508] = True
    assert edit_window(mask, 256, 32) == (slice(0, 256), slice(256, 512))
    mask[4:240, 260:508] = True
    rows, columns = edit_window(mask, 256, 32)
    assert rows.stop - rows.start == columns.stop - columns.start == 320
    with pytest.raises(ValueError, match="`mask_image` spans 512 pixels"):
        edit_window(np.ones((500, 512), dtype=bool), 256, 32)
