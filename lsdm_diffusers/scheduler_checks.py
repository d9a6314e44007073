"""Which schedulers fit a model, and their arguments: what a pipeline checks before it samples."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin

# Schedulers that give wrong pictures with every model of this pipeline, and why.
UNFIT_SCHEDULERS = {
    **dict.fromkeys(
        (
            "EDMEulerScheduler",
            "EDMDPMSolverMultistepScheduler",
            "CosineDPMSolverMultistepScheduler",
            "CMStochasticIterativeScheduler",
        ),
        "its model's output is preconditioned, neither noise, v nor sample",
    ),
    "CogVideoXDDIMScheduler": "it shifts the noise levels that the model was trained with",
    "DDIMInverseScheduler": "it goes from a picture to noise",
    "DPMSolverMultistepInverseScheduler": "it goes from a picture to noise",
}


def taken_prediction(scheduler: SchedulerMixin) -> str | None:
    """The kind of model output that `scheduler.step` takes, as `guide_model_output` names it; None where unknown."""
    if hasattr(scheduler, "scale_noise") and not hasattr(scheduler, "add_noise"):
        return "flow_prediction"
    if "prediction_type" in inspect.signature(type(scheduler).__init__).parameters:
        return str(scheduler.config.prediction_type)
    return None


def trained_prediction(scheduler_class: str, config: Mapping[str, Any]) -> str | None:
    """What the model of a checkpoint predicts, by the class and configuration of its scheduler; None where unknown.

    `from_config` hands `prediction_type` on to a flow-matching scheduler, which does not use it.
    """
    return config.get("prediction_type") or ("flow_prediction" if scheduler_class.startswith("Flow") else None)


def check_scheduler(scheduler: SchedulerMixin, trained: str | None) -> str:
    """Raise ValueError for a scheduler that does not fit the model.

    Args:
        scheduler: any of diffusers.
        trained: what the model predicts, from `trained_prediction`.

    Returns:
        What the model predicts, as `guide_model_output` names it.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name in UNFIT_SCHEDULERS:
        raise ValueError(
            f"`scheduler` is {name}, but {UNFIT_SCHEDULERS[name]}, so slices would be wrong; use another, such as "
            "DPMSolverMultistepScheduler."
        )
    for option in ("clip_sample", "thresholding"):
        if getattr(config, option, False):
            raise ValueError(
                f"`scheduler` ({name}) has {option}=True, but that clips latents, which are not bounded; use "
                f"`from_config(config, {option}=False)`."
            )
    taken = taken_prediction(scheduler)
    if taken is None:
        raise ValueError(
            f"`scheduler` is {name}, but one with a `prediction_type` is needed, such as DPMSolverMultistepScheduler."
        )
    if trained not in (None, taken):
        raise ValueError(
            f"`scheduler` ({name}) takes {taken}, but the checkpoint's scheduler says that the U-Net predicts "
            f"{trained}; use a scheduler made by `from_config(pipe.scheduler.config)`, such as "
            "DPMSolverMultistepScheduler."
        )
    return taken


def schedule_arguments(
    scheduler: SchedulerMixin,
    num_inference_steps: int,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
) -> dict[str, Any]:
    """The arguments of `scheduler.set_timesteps`, without the device."""
    if timesteps is not None and sigmas is not None:
        raise ValueError("`timesteps` and `sigmas` are both given, but a call takes one of them.")
    for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        if values is None:
            continue
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(
                f"`{name}` is given, but `scheduler` ({type(scheduler).__name__}) makes its own; use "
                "`num_inference_steps`, or another scheduler."
            )
        if len(values) == 0:
            raise ValueError(f"`{name}` is empty, but at least one step is needed.")
        return {name: torch.as_tensor(values).tolist()}
    return {"num_inference_steps": num_inference_steps}


def try_scheduler(
    scheduler: SchedulerMixin, schedule: dict[str, Any], latent_channels: int, device: torch.device
) -> None:
    """Raise ValueError, before any work, for a scheduler that cannot make its schedule or its first step."""
    scheduler = copy.deepcopy(scheduler)
    try:
        # a step may draw noise, which must not change what the call draws
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            scheduler.set_timesteps(**schedule, device=device)
            latents = torch.zeros(1, latent_channels, 8, 8, device=device)
            first = scheduler.timesteps[0]
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(latents, first)
            scheduler.step(latents, first, latents)
    except Exception as error:  # whatever the scheduler raises: a missing package, a combination it does not have
        raise ValueError(
            f"`scheduler` is {type(scheduler).__name__}, but it fails with {type(error).__name__} in a first "
            f"trial step: {' '.join(str(error).split())}"
        ) from error


def draws_noise(scheduler: SchedulerMixin, num_inference_steps: int, eta: float) -> bool:
    """Whether the steps of a scheduler draw noise: its first one then depends on the state of the random generator.

    Args:
        scheduler: any that `try_scheduler` accepts.
        num_inference_steps: of the call.
        eta: η of the call, for schedulers that take it.
    """
    results = []
    for seed in (0, 1):
        tried = copy.deepcopy(scheduler)
        tried.set_timesteps(num_inference_steps)
        extra = {"eta": eta} if "eta" in inspect.signature(tried.step).parameters else {}
        latents = torch.ones(1, 1, 8, 8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if hasattr(tried, "scale_model_input"):
                tried.scale_model_input(latents, tried.timesteps[0])
            results.append(tried.step(latents, tried.timesteps[0], latents, **extra).prev_sample)
    return not torch.equal(*results)
