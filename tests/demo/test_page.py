"""From the values of the page's components to jobs."""

import inspect

import pytest

from lsdm_diffusers import LSDMGuidedPipeline
from lsdm_diffusers.demo.packed_array import pack_array
from lsdm_diffusers.generate import parse_args
from lsdm_diffusers.sampling_defaults import (
    CONTRAST,
    EXAGGERATED_SCALES,
    GUIDANCE_SCALE,
    NUM_STEPS,
    RECOMMENDED_SCALES,
)
from tests.conftest import ROOT
from tests.page_server import small_map

pytest.importorskip("gradio", reason="needs the extra `demo`")
from lsdm_diffusers.demo.page import SIZE_OF_MAP, add_settings, jobs_of_page, show_exaggerated, show_recommended  # noqa: E402


def page_jobs(**changes):
    board = {"map": pack_array(small_map()), "pixel_spacing": 0.7, "features": None}
    values = {"board": board, "guidance_scale": 8, "sampler": "DDIM", "steps": 3, "seed": 4, "images": 2}
    values |= {"malignancy_scale": 1, "malignancy_method": "contrast", "grain": 0}
    return jobs_of_page(**{**values, "size": SIZE_OF_MAP, "compare": False, "multiple": 32, **changes})


def test_images_have_the_seeds_that_follow():
    assert [(job.seed, job.semantic_map.shape) for job in page_jobs()] == [(4, (128, 128)), (5, (128, 128))]
    assert page_jobs(size=256)[0].semantic_map.shape == (256, 256)


def test_comparison_has_one_seed_benign_and_malignant():
    benign, malignant = page_jobs(compare=True)
    assert benign.seed == malignant.seed == 4
    assert benign.features == [{"malignancy": "benign"}] and malignant.features == [{"malignancy": "malignant"}]


def test_a_comparison_without_a_difference_is_refused():
    empty = small_map()
    empty[empty == 7] = 4
    board = {"map": pack_array(empty), "pixel_spacing": 0.7, "features": None}
    with pytest.raises(ValueError, match="no nodule to compare"):
        page_jobs(compare=True, board=board)
    with pytest.raises(ValueError, match="scale of malignancy is 0"):
        page_jobs(compare=True, malignancy_scale=0)
    with pytest.raises(ValueError, match="board is empty"):
        page_jobs(board=None)


def test_defaults_are_those_that_the_documents_recommend():
    import gradio

    with gradio.Blocks():
        settings, _ = add_settings()
    assert (settings.guidance_scale.value, settings.steps.value) == (GUIDANCE_SCALE, NUM_STEPS) == (2, 25)
    assert settings.malignancy_method.value == CONTRAST
    assert settings.malignancy_scale.value == RECOMMENDED_SCALES[CONTRAST] == 1
    assert settings.grain.value == parse_args([]).grain == 0
    assert parse_args([]).num_inference_steps == NUM_STEPS
    pipeline = inspect.signature(LSDMGuidedPipeline.__call__).parameters
    assert pipeline["num_inference_steps"].default == NUM_STEPS
    for document in ("README.md", "docs/start.md"):
        text = (ROOT / document).read_text()
        assert "guidance_scale=pipe.recommended_scales()," in text and f"num_inference_steps={NUM_STEPS}," in text


def test_scales_that_exaggerate_show_a_warning():
    limit = EXAGGERATED_SCALES["classifier"]
    shown = [show_exaggerated(scale)["visible"] for scale in (0, GUIDANCE_SCALE, limit - 0.5, limit, 16, None)]
    assert shown == [False, False, False, True, True, False]
    shown = [show_exaggerated(scale, CONTRAST) for scale in (1, 2)]
    assert [update["visible"] for update in shown] == [False, True] and "calcified" in shown[1]["value"]


def test_a_method_brings_its_own_scale():
    for method in ("contrast", "classifier"):
        update = show_recommended(method)
        assert update["value"] == RECOMMENDED_SCALES[method]
        assert f"from {EXAGGERATED_SCALES[method]:g}: exaggerates" in update["info"]


def test_malignancy_has_a_scale_and_a_method_of_its_own():
    (job, _) = page_jobs(malignancy_scale=0.5, malignancy_method="classifier", guidance_scale=3, grain=0.7)
    assert job.scales == {"malignancy": 0.5, "lobulation": 3, "spiculation": 3, "texture": 3}
    parameters = job.parameters()
    assert (parameters["malignancy_method"], parameters["grain"]) == ("classifier", 0.7)
    assert page_jobs(malignancy_scale=None, malignancy_method="classifier")[0].malignancy_scale == 2
