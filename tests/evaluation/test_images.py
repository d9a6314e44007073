"""Pipelines opened by name, and images that are made once."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DPMSolverMultistepScheduler

from lsdm_diffusers import LSDMGuidedPipeline
from lsdm_diffusers.evaluation.images import (
    check_run,
    guidable_features,
    make_missing,
    model_paths,
    noise_seed,
    open_pipeline,
    read_hu,
    reconstruct,
    sample_hu,
    weights_digest,
)

from ..conftest import tiny_pipeline


def test_a_pipeline_is_opened_with_another_scheduler(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    opened = open_pipeline(tmp_path, "DPMSolverMultistepScheduler")
    assert isinstance(opened, LSDMGuidedPipeline) and isinstance(opened.scheduler, DPMSolverMultistepScheduler)
    assert opened.scheduler.config.beta_end == pipe.scheduler.config.beta_end
    with pytest.raises(ValueError, match="`scheduler` is AutoencoderKL, but a scheduler class"):
        open_pipeline(tmp_path, "AutoencoderKL")
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "DDPMPipeline"}))
    with pytest.raises(ValueError, match="holds a DDPMPipeline, but a pipeline of lsdm_diffusers is needed"):
        open_pipeline(tmp_path)


def test_models_are_named_by_folder_hub_id_or_argument(tmp_path):
    assert model_paths([str(tmp_path), "user/model", "A=user/model"]) == {
        tmp_path.name: str(tmp_path),
        "user--model": "user/model",
        "A": "user/model",
    }
    with pytest.raises(ValueError, match="the model name A is given twice; tell them apart by NAME=PATH"):
        model_paths(["A=one", "A=two"])


def test_the_digest_follows_weights_and_settings(pipe):
    digest = weights_digest(pipe)
    assert weights_digest(tiny_pipeline()) == digest
    pipe.vae.decoder.conv_out.bias.data.fill_(0.5)
    assert weights_digest(pipe) != digest


def test_features_without_a_classifier_are_not_guidable():
    assert guidable_features(tiny_pipeline(texture_classifier=None)) == ["malignancy", "lobulation", "spiculation"]


def test_a_folder_of_another_run_is_refused(tmp_path):
    check_run(Accelerator(), tmp_path, {"split": "test", "seed": 0})
    check_run(Accelerator(), tmp_path, {"split": "test", "seed": 0})
    with pytest.raises(ValueError, match=r"has what was made with seed 0 \(not 1\); take another folder"):
        check_run(Accelerator(), tmp_path, {"split": "test", "seed": 1})


def test_seeds_do_not_share_their_noise():
    assert len({noise_seed(seed, number) for seed in range(3) for number in range(1000)}) == 3000


def test_each_map_is_sampled_from_its_own_noise(pipe, semantic_map):
    labels = semantic_map[:64, :64]
    both = sample_hu(pipe, [labels, labels], [1, 2], num_inference_steps=2, no_such_argument=True)
    assert both.dtype == np.int16 and not np.array_equal(both[0], both[1])
    alone = sample_hu(pipe, [labels], [2], num_inference_steps=2)[0]
    np.testing.assert_allclose(alone, both[1], atol=1)  # HU; a batch rounds in another order


def test_reconstruction_is_the_same_in_any_batch(pipe):
    pixels = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = reconstruct(pipe.vae, pixels)
    assert whole.shape == pixels.shape and not whole.requires_grad
    torch.testing.assert_close(reconstruct(pipe.vae, pixels, batch_size=1), whole)


def test_a_process_that_lists_late_still_makes_its_share(tmp_path):
    barrier = threading.Barrier(2)

    class Process:
        """What `make_missing` uses of an accelerator, for one of two threads."""

        def __init__(self, rank):
            self.rank, self.is_local_main_process = rank, False
            self.wait_for_everyone = partial(barrier.wait, timeout=60)
            self.autocast = nullcontext

        def split_between_processes(self, items):
            half = len(items) // 2
            return nullcontext(items[half:] if self.rank else items[:half])

    def run(rank):
        time.sleep(0.5 * rank)  # without waiting, the other thread would have made its images by now
        jobs = {tmp_path / f"{number}.png": number for number in range(4)}
        make_missing(Process(rank), jobs, lambda batch: [np.full((8, 8), batch[0])], "images")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert [read_hu(tmp_path / f"{number}.png")[0, 0] for number in range(4)] == [0, 1, 2, 3]
