"""The settings of a job: what is refused, and what is made of them."""

import pytest

from lsdm_diffusers.demo.jobs import with_malignancy
from tests.page_server import jobs, small_map


def test_wrong_settings_are_named():
    for changes, sentence in (
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": 65}, "guidance_scale"),
        ({"malignancy_scale": -1}, "malignancy_scale"),
        ({"malignancy_method": "magic"}, "malignancy_method"),
        ({"grain": 5}, "grain"),
        ({"sampler": "Magic"}, "Magic"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"seed": -1}, "seed"),
        ({"num_images": 9}, "num_images"),
        ({"size": 100}, "multiples of 32"),
        ({"semantic_map": small_map()[:100]}, "multiples of 32"),
    ):
        with pytest.raises(ValueError, match=sentence):
            jobs(**changes)


def test_size_scales_map_and_pixels():
    (job,) = jobs(size=64)
    assert job.semantic_map.shape == (64, 64) and job.pixel_spacing == pytest.approx(1.4)


def test_benign_and_malignant_of_the_same_map_and_noise():
    for malignancy in ("benign", "malignant"):
        (job,) = with_malignancy(jobs(features={"texture": 4}), malignancy)
        assert job.features == [{"texture": 4, "malignancy": malignancy}] and job.seed == 0
