"""Sampling for the page: a job, its checks, and a run that reports its progress with previews and can be stopped."""

import base64
import io
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import diffusers
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from ..guidance import noise_level
from ..hounsfield import apply_window
from ..pipeline_lsdm import LSDMGuidedPipeline
from ..semantic_map import find_nodules
from ..version import __version__
from .map_board import check_features

SAMPLERS = {
    "DPM-Solver++": diffusers.DPMSolverMultistepScheduler,
    "UniPC": diffusers.UniPCMultistepScheduler,
    "DDIM": diffusers.DDIMScheduler,
    "Euler": diffusers.EulerDiscreteScheduler,
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "DDPM": diffusers.DDPMScheduler,
}
SIZES = (512, 384, 256)
MAX_STEPS, MAX_IMAGES, MAX_SCALE = 200, 8, 64
PREVIEWS = 6  # of each image


@dataclass(frozen=True)
class Job:
    """What is asked for: a map, one dict of features for each of its nodules, and how to sample."""

    semantic_map: np.ndarray
    pixel_spacing: float
    features: list[dict]
    guidance_scale: float = 8.0
    sampler: str = "DPM-Solver++"
    num_inference_steps: int = 20
    seed: int = 0
    title: str = ""

    def parameters(self) -> dict:
        """Everything that made the image, for its JSON."""
        return {
            "title": self.title,
            "nodules": [
                {
                    "centroid_yx": [round(c, 1) for c in nodule.centroid_yx],
                    "label": int(nodule.label),
                    "features": features,
                }
                for nodule, features in zip(find_nodules(self.semantic_map), self.features, strict=True)
            ],
            "guidance_scale": self.guidance_scale,
            "sampler": self.sampler,
            "num_inference_steps": self.num_inference_steps,
            "seed": self.seed,
            "versions": {
                "lsdm_diffusers": __version__,
                "diffusers": diffusers.__version__,
                "torch": torch.__version__,
            },
        }


def whole_number(name: str, value, low: int, high: int) -> int:
    """`value` as an int, if it is whole and lies in low..high."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != value
        or not low <= value <= high
        or int(value) != value
    ):
        raise ValueError(f"`{name}` is {value!r}, but a whole number {low}..{high} is needed.")
    return int(value)


def make_jobs(
    semantic_map,
    pixel_spacing,
    features,
    guidance_scale,
    sampler,
    num_inference_steps,
    seed,
    num_images,
    size=None,
    multiple=32,
) -> list[Job]:
    """The jobs of some images of one map, with the seeds `seed`, `seed` + 1 and so on.

    Args:
        semantic_map: labels 0..7, (H, W).
        pixel_spacing: edge of its pixels in mm.
        features: None, a dict for all nodules, or a list with a dict for each.
        guidance_scale: 0..64; 0 is no guidance.
        sampler: one of `SAMPLERS`.
        num_inference_steps: 1..200.
        seed: 0 and up.
        num_images: 1..8.
        size: pixels of the longer edge to scale the map to, None for as it is.
        multiple: what the pipeline's U-Net needs height and width to be multiples of.

    Raises:
        ValueError: for a value outside these.
    """
    features = check_features(features, semantic_map)
    height, width = semantic_map.shape
    if size is not None:
        size = whole_number("size", size, 32, 1024)
        pixel_spacing = pixel_spacing * max(height, width) / size
        height, width = round(height * size / max(height, width)), round(width * size / max(height, width))
        resized = np.asarray(PIL.Image.fromarray(semantic_map).resize((width, height), PIL.Image.Resampling.NEAREST))
        if len(find_nodules(resized)) != len(features):
            raise ValueError(
                f"`size` is {size}, at which a nodule of the map vanishes; take a larger size or a larger nodule."
            )
        semantic_map = resized
    if height % multiple or width % multiple:
        raise ValueError(f"The map is {height}x{width} pixels, but height and width must be multiples of {multiple}.")
    if (
        isinstance(guidance_scale, bool)
        or not isinstance(guidance_scale, (int, float))
        or not 0 <= guidance_scale <= MAX_SCALE
    ):
        raise ValueError(f"`guidance_scale` is {guidance_scale!r}, but a number 0..{MAX_SCALE} is needed.")
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler` is {sampler!r}, but {', '.join(SAMPLERS)} are known.")
    steps = whole_number("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
    seed = whole_number("seed", seed, 0, 2**32)
    images = whole_number("num_images", num_images, 1, MAX_IMAGES)
    return [
        Job(semantic_map, pixel_spacing, features, float(guidance_scale), sampler, steps, seed + i, f"seed {seed + i}")
        for i in range(images)
    ]


def with_malignancy(jobs: list[Job], malignancy: str) -> list[Job]:
    """The same jobs, maps and seeds with every nodule guided to be benign or malignant."""
    guided = [{**features, "malignancy": malignancy} for features in jobs[0].features]
    return [replace(job, features=guided, title=f"{malignancy}, {job.title}") for job in jobs]


class Stopped(Exception):
    """Raised in a run that was asked to stop."""


def predicted_latents(before, after, level_before, level_after):
    """z_0 from two successive latents of a sampler: z_t = α_t·z_0 + σ_t·noise with the same noise, solved for z_0 (exact for DDIM, η = 0)."""
    (alpha, sigma), (next_alpha, next_sigma) = level_before, level_after
    return (next_sigma * before - sigma * after) / (next_sigma * alpha - sigma * next_alpha)


def preview_url(pipe: LSDMGuidedPipeline, latents) -> str:
    """Data URL of a JPEG of latents (1, c, h, w), decoded at half the resolution."""
    small = F.avg_pool2d(latents.float(), 2)
    pixels = (
        pipe.vae.decode((small / pipe.vae.config.scaling_factor).to(pipe.vae.dtype)).sample[0, 0].float().cpu().numpy()
    )
    hu = (np.clip(pixels, -1, 1) + 1) * 912 - 1024
    file = io.BytesIO()
    PIL.Image.fromarray(apply_window(hu, "lung")).save(file, format="jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def sample(pipeline: LSDMGuidedPipeline, job: Job, guided: bool = True, on_step=None) -> np.ndarray:
    """The slice of a job in HU, int16 (H, W).

    Args:
        pipeline: whose models are used; the pipeline itself stays as it is, so that runs do not meet.
        job: what to make.
        guided: False for the same noise without guidance.
        on_step: called with (step, preview data URL or None) after each step; may raise `Stopped`.
    """
    scheduler = SAMPLERS[job.sampler].from_config(pipeline.scheduler.config, clip_sample=False, thresholding=False)
    pipe = type(pipeline)(**{**pipeline.components, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    every = max(1, job.num_inference_steps // PREVIEWS)
    previous = None

    def after_step(pipe, index, timestep, tensors):
        nonlocal previous
        latents, preview = tensors["latents"], None
        timesteps = pipe.scheduler.timesteps
        if previous is not None and index % every == 0 and index + 1 < len(timesteps):
            levels = [noise_level(pipe.scheduler, t) for t in (timestep, timesteps[index + 1])]
            preview = preview_url(pipe, predicted_latents(previous, latents, *levels))
        previous = latents
        if on_step is not None:
            on_step(index + 1, preview)
        return {}

    return pipe(
        job.semantic_map,
        nodule_features=[job.features] if guided and any(job.features) else None,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator().manual_seed(job.seed),
        output_type="hu",
        callback_on_step_end=after_step,
    ).images[0]


def run(pipeline: LSDMGuidedPipeline, jobs: list[Job], with_unguided: bool, stop: threading.Event) -> Iterator[tuple]:
    """Yields ("step", fraction done, text, preview or None) and, for each job, ("slice", job, hu, unguided hu or None).

    The sampling has a thread of its own, which ends at its next step when `stop` is set or the iterator is closed.
    """
    passes = [
        (job, guided) for job in jobs for guided in ([True, False] if with_unguided and any(job.features) else [True])
    ]
    total = sum(job.num_inference_steps for job, _ in passes)
    news = queue.Queue()

    def work():
        try:
            done, guided_hu = 0, None
            for number, (job, guided) in enumerate(passes):
                last = number + 1 == len(passes) or passes[number + 1][0] is not job

                def on_step(step, preview, job=job, guided=guided, done=done):
                    if stop.is_set():
                        raise Stopped
                    kind = job.title if guided else f"{job.title}, unguided"
                    news.put(
                        ("step", (done + step) / total, f"{kind}: step {step} of {job.num_inference_steps}", preview)
                    )

                hu = sample(pipeline, job, guided, on_step)
                done += job.num_inference_steps
                guided_hu = hu if guided else guided_hu
                if last:
                    news.put(("slice", job, guided_hu, None if guided else hu))
            news.put(None)
        except BaseException as error:  # of the thread, for the caller
            news.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := news.get()) is not None:
            if stop.is_set():  # what was done before is no news any more
                raise Stopped
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
