"""Guidance by gradients of classifiers (thesis, section 3.4 and Alg. 2)."""

from collections.abc import Callable, Collection, Mapping

import torch
from diffusers import AutoencoderKL, SchedulerMixin

from ..guidance import (
    check_gradients_allowed,
    classifier_gradient,
    guide_model_output,
    noise_levels,
    sequential_gradient,
    step_variances,
)
from ..latents import decode_latents
from ..models.nodule_classifier import NoduleClassifier
from ..nodule_batch import NoduleBatch
from .step import GuidedStep

GradientHook = Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]

_INTERPOLATED = "its interpolated second step has a noise level it does not report"
UNGUIDABLE_SCHEDULERS = {"KDPM2DiscreteScheduler": _INTERPOLATED, "DPMSolverSDEScheduler": _INTERPOLATED}


def check_noise_levels(scheduler: SchedulerMixin) -> None:
    """Raise ValueError for a scheduler that does not tell the noise level of its steps."""
    name = type(scheduler).__name__
    if name in UNGUIDABLE_SCHEDULERS:
        raise ValueError(
            f"`scheduler` is {name}, but {UNGUIDABLE_SCHEDULERS[name]}, so guidance would be wrong; use another, "
            "such as DPMSolverMultistepScheduler."
        )
    if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        raise ValueError(
            f"`scheduler` is {name}, but guidance needs one with `add_noise` or `scale_noise`, such as "
            "DPMSolverMultistepScheduler."
        )


class ClassifierGuidance:
    """Adds s·∇ log p(y | z_t) of the nodules' classifiers to the score, inside the nodules.

    It settles before the first step what no step changes, so that no step waits for the device.

    Args:
        nodules: the nodules, and what their classifiers are asked for.
        classifiers: by feature; those of `nodules.targets` are used.
        vae: the autoencoder, whose decoder the gradient passes through.
        scheduler: that of the call, after `set_timesteps`.
        prediction_type: as `guide_model_output` names it.
        order: "sequential" or "joint".
        shape: of the latents, (B, c, h, w).
        hook: the pipeline's `gradient_hook`, or None.

    Raises:
        ValueError: for a scheduler that does not tell its noise levels.
        RuntimeError: under `torch.inference_mode`, or with sequential offload.
    """

    def __init__(
        self,
        nodules: NoduleBatch,
        classifiers: Mapping[str, NoduleClassifier],
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        prediction_type: str,
        order: str,
        shape: tuple[int, ...],
        hook: GradientHook | None = None,
    ):
        check_gradients_allowed()
        check_noise_levels(scheduler)
        for name, module in {"vae": vae, **classifiers}.items():
            if any(parameter.device.type == "meta" for parameter in module.parameters()):
                raise RuntimeError(
                    f"The weights of {name} are off the device (sequential offload), which gives no gradients; use "
                    "`enable_model_cpu_offload()` or `enable_group_offload()`."
                )
        self.nodules, self.vae, self.prediction_type, self.order, self.hook = (
            nodules,
            vae,
            prediction_type,
            order,
            hook,
        )
        self.classifiers = {feature: classifiers[feature] for feature in nodules.targets}
        # Where each image is guided, (B, 1, h, w).
        self.mask = nodules.paste(nodules.masks.float(), (shape[0], 1, *shape[2:])) > 0
        device = nodules.masks.device
        self.timesteps = scheduler.timesteps.tolist()
        alphas, sigmas = noise_levels(scheduler, scheduler.timesteps)
        self.alphas, self.sigmas = alphas.to(device), sigmas.to(device)
        self.variances = step_variances(alphas, sigmas).to(device)
        decoder = [part for name, part in vae.named_children() if name not in ("encoder", "quant_conv")]
        self.modules: list[torch.nn.Module] = [*decoder, *self.classifiers.values()]
        # Whether group offload moves their weights between forward and backward pass.
        self.offloaded = any(hasattr(part, "_diffusers_hook") for module in self.modules for part in module.modules())

    def gradient(self, step: GuidedStep) -> torch.Tensor:
        """s·g summed over nodules and features, with respect to the scheduler's latents; zero outside the masks."""
        nodules = self.nodules
        # Schedulers of the sigma kind keep z_0 + σ·noise; the classifiers know its variance-preserving form.
        norm = torch.hypot(self.alphas[step.index], self.sigmas[step.index])
        image_dtype = next(iter(self.classifiers.values())).dtype

        def decode(crops: torch.Tensor) -> torch.Tensor:
            return decode_latents(self.vae, crops).to(image_dtype)

        def gradient(crops: torch.Tensor, features: Collection[str]) -> torch.Tensor:
            asked = {feature: self.classifiers[feature] for feature in features}
            g = classifier_gradient(
                crops,
                step.timestep,
                decode,
                asked,
                nodules.targets,
                step.scales,
                nodules.rows,
                keep_weights=self.offloaded,
            )
            return g * nodules.masks

        crops = nodules.crops(step.latents).float() / norm
        features = [feature for feature in nodules.targets if step.scales[feature]]
        if self.order == "sequential":
            g = sequential_gradient(gradient, crops, features, self.variances[step.index])
        else:
            g = gradient(crops, features)
        g = nodules.paste(g / norm, step.latents.shape)
        return g if self.hook is None else self.hook(g, self.timesteps[step.index], self.mask)

    def __call__(self, model_output: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """Shift the model output by the gradient."""
        alpha, sigma = self.alphas[step.index], self.sigmas[step.index]
        return guide_model_output(model_output, self.gradient(step), alpha, sigma, self.prediction_type)
