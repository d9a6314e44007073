"""Nodules in 3D: their shape, their place, and edits of neighbouring slices that agree."""

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from lsdm_diffusers import (
    LSDMInpaintPipeline,
    change_nodule_3d,
    insert_nodule_3d,
    pipeline_lsdm_inpaint,
    remove_nodule_3d,
)
from lsdm_diffusers.series_edits import find_nodules_3d, numbered_nodules, sphere_of_outline
from lsdm_diffusers.slice_edits import with_vessels
from lsdm_diffusers.volume_noise import noise_correlation, volume_noise

from .conftest import tiny_pipeline
from .synthetic_series import SLICE_SPACING, SPACING, series_hu

OPTIONS = {"pixel_spacing": SPACING, "num_inference_steps": 2, "window": 72}
PLACE = (2.0, 64.0, 35.0)


@pytest.fixture(scope="module")
def inpaint():
    pipe = LSDMInpaintPipeline(**tiny_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def hu():
    return series_hu()


def disc(radius, size=41):
    rows, columns = np.mgrid[:size, :size] - size // 2
    return np.hypot(rows, columns) <= radius


@pytest.mark.parametrize("offset", [0, 2.5, -4, 7])
def test_a_disc_becomes_a_sphere(offset):
    """The area of each cut is that of a sphere: A·(1 - (2Δz / d)²)."""
    outline = disc(12)
    (cut,) = sphere_of_outline(outline, [offset], diameter_mm=16)
    assert cut.sum() == round(outline.sum() * (1 - (2 * offset / 16) ** 2))
    rows, columns = np.nonzero(cut)
    assert (rows.mean(), columns.mean()) == pytest.approx((20, 20), abs=0.3)
    radius = np.sqrt(cut.sum() / np.pi)
    assert np.hypot(rows - 20, columns - 20).max() < radius + 1


def test_the_middle_is_the_outline_and_beyond_the_radius_is_nothing():
    outline = disc(9)
    outline[5:12, 20] = True  # a spicule
    masks = sphere_of_outline(outline, [0, 8, -8, 30], diameter_mm=16)
    np.testing.assert_array_equal(masks[0], outline)
    assert not masks[1:].any()


def test_nodules_of_a_mask_are_numbered_and_measured():
    mask = np.zeros((6, 20, 20), dtype=np.int64)
    mask[1:4, 2:5, 2:5] = 1
    mask[5, 10:14, 10:14] = 1
    numbers = numbered_nodules(mask)
    first, second = find_nodules_3d(numbers, pixel_spacing_mm=2, slice_spacing_mm=3)
    assert first.centre == (2, 3, 3) and first.slices == (1, 3) and first.number == 1
    assert first.diameter_mm == pytest.approx((6 * 27 * 12 / np.pi) ** (1 / 3))
    assert second.centre == (5, 11.5, 11.5) and second.slices == (5, 5)
    np.testing.assert_array_equal(numbered_nodules(numbers * 3), numbers * 3)  # their own numbers stay
    for wrong in (mask[0], mask - 1, mask + 0.5):
        with pytest.raises(ValueError, match="whole numbers"):
            numbered_nodules(wrong)


def test_a_nodule_is_inserted_changed_and_removed(inpaint, hu):
    inserted = insert_nodule_3d(inpaint, hu, PLACE, 14, SLICE_SPACING, {"malignancy": "malignant"}, **OPTIONS)
    assert inserted.nodule.any((1, 2)).tolist() == [True] * 5 + [False]
    areas = inserted.nodule.sum((1, 2))
    assert areas.argmax() == 2 and areas[2] == round(np.pi * (7 / SPACING) ** 2)
    changed = change_nodule_3d(inpaint, inserted.hu, inserted.nodule, {"texture": 1}, SLICE_SPACING, **OPTIONS)
    removed = remove_nodule_3d(inpaint, inserted.hu, inserted.nodule, SLICE_SPACING, **OPTIONS)
    for edit, before in ((inserted, hu), (changed, inserted.hu), (removed, inserted.hu)):
        assert edit.hu.dtype == hu.dtype
        np.testing.assert_array_equal(edit.hu[~edit.mask], before[~edit.mask])
        assert (edit.hu != before)[edit.nodule].mean() > 0.5 and edit.mask[edit.nodule].all()
    again = insert_nodule_3d(inpaint, hu, PLACE, 14, SLICE_SPACING, {"malignancy": "malignant"}, **OPTIONS)
    np.testing.assert_array_equal(again.hu, inserted.hu)
    other = insert_nodule_3d(inpaint, hu, PLACE, 14, SLICE_SPACING, {"malignancy": "malignant"}, seed=1, **OPTIONS)
    assert not np.array_equal(other.hu, inserted.hu)


def test_each_slice_of_a_volume_is_drawn_from_its_own_noise_of_the_volume(inpaint, hu, monkeypatch):
    """As it is drawn alone from that noise, in the same window; the slice between has no mask and stays."""
    labels = np.full(hu.shape, 4, dtype=np.uint8)
    masks = np.zeros(hu.shape, dtype=bool)
    masks[1, 60:66, 30:36] = masks[3, 60:66, 30:36] = True
    labels[masks] = 7
    options = {"num_inference_steps": 2, "window": 72}
    generator = torch.Generator().manual_seed(3)
    output = inpaint(hu, masks, labels, volume=True, slice_spacing_mm=SLICE_SPACING, generator=generator, **options)
    assert (output.images != hu).any((1, 2)).tolist() == [False, True, False, True, False, False]
    np.testing.assert_array_equal(output.masks, masks)
    rho = noise_correlation(SLICE_SPACING)
    shape = (1, inpaint.vae.config.latent_channels, 72 // inpaint.vae_scale_factor, 72 // inpaint.vae_scale_factor)
    noises = list(volume_noise(3, shape, rho, torch.Generator().manual_seed(3), torch.device("cpu")))
    for index, noise in ((1, noises[0]), (3, noises[2])):
        monkeypatch.setattr(pipeline_lsdm_inpaint, "randn_tensor", lambda *_, noise=noise, **__: noise)
        alone = inpaint(hu[index], masks[index], labels[index], **options)
        np.testing.assert_array_equal(alone.images[0], output.images[index])


WRONG = {
    "no slice": ({"centre": (9, 64, 35)}, "slice 9, but the series has 0..5"),
    "in the body": ({"centre": (2, 64, 64)}, "would lie in lung"),
    "too small": ({"diameter_mm": 2}, "`diameter_mm` is 2"),
    "spacing": ({"slice_spacing_mm": 0}, "`slice_spacing_mm` is 0"),
    "another nodule": ({"other_nodules": np.ones((6, 128, 128), dtype=bool)}, "would touch another one"),
    "a feature": ({"nodule_features": {"colour": 1}}, "colour"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_nodule_without_room_is_refused(inpaint, hu, case):
    changes, message = WRONG[case]
    arguments = {"centre": PLACE, "diameter_mm": 12, "slice_spacing_mm": SLICE_SPACING, **changes}
    with pytest.raises(ValueError, match=message):
        insert_nodule_3d(inpaint, hu, **arguments, **OPTIONS)


def test_what_a_volume_cannot_have_is_refused(inpaint, hu):
    labels = np.full(hu.shape, 4, dtype=np.uint8)
    labels[2, 60:66, 30:36] = 7
    with pytest.raises(ValueError, match="`slice_spacing_mm` is missing"):
        inpaint(hu, None, labels, volume=True)
    with pytest.raises(ValueError, match="for `volume=True` alone"):
        inpaint(hu, None, labels, slice_spacing_mm=2)
    with pytest.raises(ValueError, match="no dict, but an edit of a volume"):
        inpaint(hu, None, labels, [{}], volume=True, slice_spacing_mm=2)
    with pytest.raises(ValueError, match="no nodule to draw in the volume"):
        inpaint(hu, None, np.full(hu.shape, 4, dtype=np.uint8), volume=True, slice_spacing_mm=2)
    noisy = LSDMInpaintPipeline(**inpaint.components)
    noisy.scheduler = EulerAncestralDiscreteScheduler.from_config(inpaint.scheduler.config)
    with pytest.raises(ValueError, match="draws no noise"):
        noisy(hu, None, labels, volume=True, slice_spacing_mm=2)
    with pytest.raises(ValueError, match="shape"):
        remove_nodule_3d(inpaint, hu, np.zeros((3, 3), dtype=bool), 2)
    with pytest.raises(ValueError, match="an outline: remove the nodule"):
        nodule = labels >= 5
        methods = {"guidance_method": {"spiculation": "outline"}}
        change_nodule_3d(inpaint, hu, nodule, {"spiculation": 5}, 2, **methods)


def test_brighter_tissue_shines_through_an_inserted_nodule():
    before = np.array([-900, -700, -590, 40, -400], dtype=np.int16)
    after = np.array([-850, -900, -650, -30, -30], dtype=np.int16)
    kept = with_vessels(before, after)
    assert kept.dtype == np.int16 and kept.tolist() == [-850, -900, -590, 40, -30]
