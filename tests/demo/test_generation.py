"""Sampling for the page, with a tiny pipeline: progress, previews, slices, and the stop."""

import threading

import pytest
import torch

from lsdm_diffusers.demo import generation
from lsdm_diffusers.demo.jobs import SAMPLERS
from tests.page_server import jobs, page_pipeline


@pytest.fixture(scope="module")
def pipe():
    return page_pipeline()


def test_each_sampler_runs_and_leaves_the_pipeline_alone(pipe):
    before = pipe.scheduler
    for sampler in SAMPLERS:
        (job,) = jobs(sampler=sampler, features={"malignancy": "benign"})
        hu, _ = generation.sample(pipe, job)
        assert hu.shape == (128, 128) and hu.std() > 0
    assert pipe.scheduler is before


def test_predicted_latents_are_exact_for_a_straight_path():
    z_0, noise = torch.randn(2, 1, 3, 4, 4)
    levels = [(torch.tensor(0.6), torch.tensor(0.8)), (torch.tensor(0.8), torch.tensor(0.6))]
    z_t, z_s = (alpha * z_0 + sigma * noise for alpha, sigma in levels)
    assert torch.allclose(generation.predicted_latents(z_t, z_s, *levels), z_0, atol=1e-5)


def test_run_reports_progress_previews_and_slices(pipe):
    (job,) = jobs(num_inference_steps=12, features={"malignancy": "benign"})
    *steps, generated = generation.run(pipe, [job], True, threading.Event())
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1 and len(steps) == 24
    assert sum(step.preview is not None for step in steps) >= 4
    assert generated.job == job
    assert (generated.hu == generation.sample(pipe, job)[0]).all()
    assert (generated.unguided_hu == generation.sample(pipe, job, guided=False)[0]).all()
    assert (generated.hu != generated.unguided_hu).any()


def test_run_stops_when_asked(pipe):
    stop = threading.Event()
    iterator = generation.run(pipe, jobs(num_inference_steps=100), False, stop)
    next(iterator)
    stop.set()
    with pytest.raises(generation.Stopped):
        list(iterator)
    closed = generation.run(pipe, jobs(num_inference_steps=100), False, threading.Event())
    next(closed)
    before = threading.active_count()
    closed.close()
    assert threading.active_count() == before - 1
