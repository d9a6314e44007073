"""Sampling for the page: each job reports its progress with previews, and can be stopped at any step."""

import base64
import copy
import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from ..guidance import noise_level
from ..hounsfield import apply_window, hu_from_scaled
from ..latents import decode_latents
from ..pipeline_lsdm import LSDMGuidedPipeline
from .jobs import SAMPLERS, Job

PREVIEWS = 6  # of each slice
PREVIEW_REDUCTION = 2  # previews have half the height and width of the slice
PREVIEW_JPEG_QUALITY = 80

NoiseLevel = tuple[torch.Tensor, torch.Tensor]  # (α, σ)
OnStep = Callable[[int, str | None], None]


class Stopped(Exception):
    """The run was asked to stop."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        fraction: of all steps, 0..1.
        text: which slice is being made, and its step.
        preview: data URL of a picture of the slice so far, if this step has one.
    """

    fraction: float
    text: str
    preview: str | None = None


@dataclass(frozen=True)
class GeneratedSlice:
    """A slice of a run.

    Args:
        job: what it was made for.
        hu: (H, W), int16, Hounsfield units.
        drawn_map: labels (H, W), uint8: the job's map with the labels and outlines that guidance gave its nodules.
        unguided_hu: the slice of the same noise without guidance, if it was made.
    """

    job: Job
    hu: np.ndarray
    drawn_map: np.ndarray
    unguided_hu: np.ndarray | None


def predicted_latents(
    latents: torch.Tensor, next_latents: torch.Tensor, level: NoiseLevel, next_level: NoiseLevel
) -> torch.Tensor:
    """Predict z_0 from two successive latents of a sampler.

    Both are z_t = α_t·z_0 + σ_t·noise. We take the noise to be the same in both and solve for z_0. This is exact for
    DDIM with η = 0.

    Args:
        latents, next_latents: (1, c, h, w), before and after a step.
        level, next_level: (α, σ) of each.
    """
    (alpha, sigma), (next_alpha, next_sigma) = level, next_level
    return (next_sigma * latents - sigma * next_latents) / (next_sigma * alpha - sigma * next_alpha)


def preview_url(pipe: LSDMGuidedPipeline, latents: torch.Tensor) -> str:
    """Data URL of a small JPEG of latents (1, c, h, w), in the lung window."""
    pixels = decode_latents(pipe.vae, F.avg_pool2d(latents.float(), PREVIEW_REDUCTION))
    hu = hu_from_scaled(pixels[0, 0].float().cpu().numpy().clip(-1, 1))
    file = io.BytesIO()
    PIL.Image.fromarray(apply_window(hu, "lung")).save(file, format="jpeg", quality=PREVIEW_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def sample(
    pipeline: LSDMGuidedPipeline, job: Job, guided: bool = True, on_step: OnStep | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Make the slice of a job.

    Args:
        pipeline: the pipeline whose models are used. It is not changed, so that several runs can share it.
        job: what to make.
        guided: False for the same noise without guidance.
        on_step: called with the step and the data URL of a preview, or None, after each step; may raise `Stopped`.

    Returns:
        The slice, (H, W), int16, in Hounsfield units, and the map that it was drawn from.
    """
    scheduler = SAMPLERS[job.sampler].from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)
    pipe = copy.copy(pipeline)
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    preview_interval = max(1, job.num_inference_steps // PREVIEWS)
    previous_latents = None

    def after_step(
        pipe: LSDMGuidedPipeline, index: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        nonlocal previous_latents
        latents, preview = tensors["latents"], None
        timesteps = pipe.scheduler.timesteps
        is_last = index + 1 == len(timesteps)
        if previous_latents is not None and index % preview_interval == 0 and not is_last:
            level, next_level = (noise_level(pipe.scheduler, t) for t in (timestep, timesteps[index + 1]))
            preview = preview_url(pipe, predicted_latents(previous_latents, latents, level, next_level))
        previous_latents = latents
        if on_step is not None:
            on_step(index + 1, preview)
        return {}

    features = [job.features] if guided and any(job.features) else None
    output: Any = pipe(
        job.semantic_map,
        nodule_features=features,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.scales if features else 1.0,
        guidance_method={"malignancy": job.malignancy_method},
        grain=job.grain,
        generator=torch.Generator().manual_seed(job.seed),
        output_type="hu",
        callback_on_step_end=after_step,
    )
    return output.images[0], output.semantic_maps[0]


def run(
    pipeline: LSDMGuidedPipeline, jobs: Sequence[Job], with_unguided: bool, stop: threading.Event
) -> Iterator[Progress | GeneratedSlice]:
    """Make the slices of jobs in a thread. It ends at its next step when `stop` is set or the iterator is closed.

    Args:
        pipeline: the pipeline whose models are used.
        jobs: what to make.
        with_unguided: whether to make each guided slice without guidance, too.
        stop: set by anyone to stop the run.

    Yields:
        The progress after each step, and each slice as soon as it is made.

    Raises:
        Stopped: if `stop` was set.
    """
    compared = {index for index, job in enumerate(jobs) if with_unguided and any(job.features)}
    total_steps = sum(job.num_inference_steps * (2 if index in compared else 1) for index, job in enumerate(jobs))
    updates: queue.Queue[Progress | GeneratedSlice | BaseException | None] = queue.Queue()  # None: the end

    def sample_with_progress(job: Job, guided: bool, steps_before: int) -> tuple[np.ndarray, np.ndarray]:
        title = job.title if guided else f"{job.title}, unguided"

        def on_step(step: int, preview: str | None) -> None:
            if stop.is_set():
                raise Stopped
            text = f"{title}: step {step} of {job.num_inference_steps}"
            updates.put(Progress((steps_before + step) / total_steps, text, preview))

        return sample(pipeline, job, guided, on_step)

    def work() -> None:
        try:
            steps_done = 0
            for index, job in enumerate(jobs):
                hu, drawn_map = sample_with_progress(job, True, steps_done)
                steps_done += job.num_inference_steps
                unguided_hu = None
                if index in compared:
                    unguided_hu, _ = sample_with_progress(job, False, steps_done)
                    steps_done += job.num_inference_steps
                updates.put(GeneratedSlice(job, hu, drawn_map, unguided_hu))
            updates.put(None)
        except BaseException as error:  # raised again in the thread of the caller
            updates.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (update := updates.get()) is not None:
            if stop.is_set():  # updates from before the stop are not shown any more
                raise Stopped
            if isinstance(update, BaseException):
                raise update
            yield update
    finally:
        stop.set()
        thread.join()
