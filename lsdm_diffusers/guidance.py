"""Classifier guidance for any scheduler, and its masked, local form for nodules (thesis, section 3.4).

Which formula. With z_t = α·z_0 + σ·noise the score is -ε/σ. Adding s·g, with g = ∇ log p(y | z_t), to the score
therefore means ε̂ = ε - s·σ·g (Dhariwal & Nichol 2021, Alg. 2), applied to the model output *before* `scheduler.step`.
This holds in every scheduler's coordinates. The thesis prints s·σ_t·log p added to the DDPM mean (eq. 3.6, Alg. 2).
Read literally, that lacks the gradient sign, uses σ_t where its eq. 3.5 has Σ = σ_t², and vanishes under DDIM with
η = 0.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin


class GuidingClassifier(Protocol):
    """What guidance needs of a classifier; `NoduleClassifier` has it."""

    def log_prob(
        self,
        image: torch.Tensor,
        timestep: torch.Tensor | float | int,
        target: torch.Tensor,
        check_target: bool = True,
    ) -> torch.Tensor:
        """log p(target | image, t) up to a constant, one value per image."""


def _check_in_schedule(scheduler: SchedulerMixin, timestep: torch.Tensor | float | int) -> None:
    """Raise ValueError where a scheduler that keeps a list of levels would answer with another timestep's level."""
    if not hasattr(scheduler, "sigmas"):
        return  # its levels are those of training, whatever the schedule is
    name = type(scheduler).__name__
    if getattr(scheduler, "num_inference_steps", None) is None:
        raise ValueError(
            f"`scheduler` ({name}) has no schedule yet, but a noise level needs one; use `set_timesteps`."
        )
    timestep = torch.as_tensor(timestep)
    if not (scheduler.timesteps.to(timestep.device) == timestep).any():
        raise ValueError(
            f"`timestep` is {timestep.item():g}, but {name} knows the levels of `scheduler.timesteps` alone."
        )


def noise_level(scheduler: SchedulerMixin, timestep: torch.Tensor | float | int) -> tuple[torch.Tensor, torch.Tensor]:
    """(α, σ) with z_t = α·z_0 + σ·noise at `timestep`, asked of the scheduler itself; 0-dim float32 tensors.

    Args:
        scheduler: any diffusers scheduler with `add_noise`, or with `scale_noise` (flow matching).
        timestep: one of `scheduler.timesteps`.

    Raises:
        ValueError: for a scheduler with neither; and, where the scheduler looks levels up in its schedule, before
            `set_timesteps` or for a timestep that is not in the schedule.
    """
    _check_in_schedule(scheduler, timestep)
    timestep = torch.as_tensor(timestep).reshape(1)
    one, zero = torch.ones(1, device=timestep.device), torch.zeros(1, device=timestep.device)
    if hasattr(scheduler, "add_noise"):
        alpha, sigma = scheduler.add_noise(one, zero, timestep), scheduler.add_noise(zero, one, timestep)
    elif hasattr(scheduler, "scale_noise"):
        alpha, sigma = scheduler.scale_noise(one, timestep, zero), scheduler.scale_noise(zero, timestep, one)
    else:
        raise ValueError(
            f"`scheduler` is {type(scheduler).__name__}, but guidance needs one with `add_noise` or `scale_noise`."
        )
    return alpha[0], sigma[0]


def noise_levels(scheduler: SchedulerMixin, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`noise_level` of all timesteps: α and σ, each (T,).

    Schedulers look a timestep up in their schedule, which waits for the device. So this is done before the first step.

    Args:
        scheduler: any diffusers scheduler with `add_noise` or `scale_noise`, after `set_timesteps`.
        timesteps: (T,), `scheduler.timesteps`.
    """
    levels = [noise_level(scheduler, timestep) for timestep in timesteps]
    return torch.stack([alpha for alpha, _ in levels]), torch.stack([sigma for _, sigma in levels])


def step_variances(alphas: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Σ = 1 - ᾱ_t / ᾱ_t' of each step from t to the next timestep t' (thesis, eq. 3.5).

    ᾱ is α² / (α² + σ²), and 1 after the last step.

    Args:
        alphas, sigmas: (T,), from `noise_levels`.

    Returns:
        (T,), at least 0.
    """
    alpha_bars = (alphas / torch.hypot(alphas, sigmas)) ** 2
    next_alpha_bars = torch.cat([alpha_bars[1:], torch.ones_like(alpha_bars[:1])])
    return (1 - alpha_bars / next_alpha_bars).clamp(min=0)


def guide_model_output(
    model_output: torch.Tensor,
    gradient: torch.Tensor,
    alpha: torch.Tensor | float,
    sigma: torch.Tensor | float,
    prediction_type: str,
) -> torch.Tensor:
    """Shift the model output so that its score becomes score + gradient.

    Args:
        model_output: (B, c, h, w), as the U-Net gave it.
        gradient: s·g, g = ∇ log p(y | z_t) with respect to the scheduler's latents, of the same shape.
        alpha, sigma: from `noise_level`.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".

    Returns:
        (B, c, h, w): ε - σ·s·g; or x0 + σ²/α·s·g; or v - σ·√(α²+σ²)/α·s·g; or, of flow matching, v - σ/α·s·g.

    Raises:
        ValueError: for another `prediction_type`.
    """
    alpha, sigma = torch.as_tensor(alpha), torch.as_tensor(sigma)
    if prediction_type == "epsilon":
        return model_output - sigma * gradient
    if prediction_type == "sample":
        shift = sigma**2 / alpha
    elif prediction_type == "v_prediction":
        shift = -sigma * (alpha**2 + sigma**2) ** 0.5 / alpha
    elif prediction_type == "flow_prediction":
        shift = -sigma / alpha
    else:
        raise ValueError(
            f'`prediction_type` is {prediction_type!r}, but "epsilon", "sample", "v_prediction" or "flow_prediction" '
            "is needed."
        )
    # α = 0 is pure noise (first step of flow matching or of zero terminal SNR). It says nothing about z_0, so the true
    # gradient is 0. `where` chooses on the device; an `if` would wait for it.
    return model_output + torch.where(alpha == 0, 0.0, shift) * gradient


def nodule_mask(nodule: torch.Tensor, latent_size: tuple[int, int], dilation: int = 1) -> torch.Tensor:
    """Where guidance acts: the nodule, max-pooled to latent resolution and dilated.

    The thesis prints the mask as (1 - M) with M = 1 *outside* the dilated nodule (eq. 3.8). This is 1 - M.

    Args:
        nodule: boolean mask of one nodule, (H, W), in pixels.
        latent_size: height h and width w of the latents.
        dilation: width of the dilation, in latents.

    Returns:
        Boolean mask, (h, w).
    """
    pooled = F.adaptive_max_pool2d(nodule[None, None].float(), latent_size)
    return F.max_pool2d(pooled, 2 * dilation + 1, stride=1, padding=dilation)[0, 0] > 0


# The parameters that `frozen` holds, by id: the parameter, and how many contexts hold it. Threads may share weights.
_frozen: dict[int, tuple[torch.nn.Parameter, int]] = {}
_frozen_lock = Lock()


@contextmanager
def frozen(*modules: torch.nn.Module) -> Iterator[None]:
    """Disable `requires_grad` on the modules' parameters inside the context.

    Guidance needs the gradients of the latents alone, and is faster without those of the weights. Contexts of several
    threads may overlap: a parameter gets `requires_grad` back with the last of them.
    """
    with _frozen_lock:
        parameters = []
        for parameter in {parameter for module in modules for parameter in module.parameters()}:
            _, holders = _frozen.get(id(parameter), (parameter, 0))
            if holders or parameter.requires_grad:
                _frozen[id(parameter)] = (parameter, holders + 1)
                parameter.requires_grad_(False)
                parameters.append(parameter)
    try:
        yield
    finally:
        with _frozen_lock:
            for parameter in parameters:
                _, holders = _frozen.pop(id(parameter))
                if holders > 1:
                    _frozen[id(parameter)] = (parameter, holders - 1)
                else:
                    parameter.requires_grad_(True)


def check_gradients_allowed() -> None:
    """Raise RuntimeError under `torch.inference_mode`, which forbids the gradients that guidance needs."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Guidance needs gradients, which `torch.inference_mode` forbids; use `torch.no_grad` or nothing around "
            "the call."
        )


def classifier_gradient(
    crops: torch.Tensor,
    timestep: torch.Tensor | float | int,
    decode: Callable[[torch.Tensor], torch.Tensor],
    classifiers: Mapping[str, GuidingClassifier],
    targets: Mapping[str, torch.Tensor],
    scales: Mapping[str, float],
    rows: Mapping[str, torch.Tensor] | None = None,
    keep_weights: bool = True,
) -> torch.Tensor:
    """Σ_i s_i ∇ log p_i(y_i | D(crop), t) with respect to latent crops (thesis, eq. 3.7, 3.8), from one decode.

    Args:
        crops: (N, c, 16, 16), one latent crop for each nodule, in the noising that the classifiers were trained on
            (variance preserving).
        timestep: 0-dim tensor or number.
        decode: maps latents to pixels, the autoencoder's scaling factor included.
        classifiers: {feature: classifier} of the features that guide.
        targets: {feature: (M,)}, one target for each crop that is guided in the feature, as `feature_target` gives
            them. They are not checked: that would wait for the device.
        scales: {feature: s}.
        rows: {feature: (M,) indices of those crops}; None where every feature guides every crop.
        keep_weights: hold the weights that the forward pass saw until the backward pass. Group offload needs it, since
            it moves them in between; it costs time.

    Returns:
        The gradient, of the shape of `crops`.

    Raises:
        RuntimeError: under `torch.inference_mode`, which forbids gradients.
    """
    check_gradients_allowed()
    guiding = {feature: classifier for feature, classifier in classifiers.items() if scales[feature]}
    if not guiding:
        return torch.zeros_like(crops)
    # Group offload puts other memory into the parameters after each forward: keep the tensors that the forward saw.
    as_seen = (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)
        if keep_weights
        else nullcontext()
    )
    with torch.enable_grad(), as_seen:
        crops = crops.detach().requires_grad_(True)
        images = decode(crops)
        total = images.new_zeros((), dtype=torch.float32)
        for feature, classifier in guiding.items():
            asked = images if rows is None else images[rows[feature]]
            log_prob = classifier.log_prob(asked, timestep, targets[feature], check_target=False)
            # a sum, never a mean: sample i of a batch gets what it would get alone
            total = total + scales[feature] * log_prob.float().sum()
        return torch.autograd.grad(total, crops)[0]


def sequential_gradient(
    gradient: Callable[[torch.Tensor, Collection[str]], torch.Tensor],
    crops: torch.Tensor,
    features: Collection[str],
    variance: torch.Tensor,
) -> torch.Tensor:
    """Gradient in the thesis' order: malignancy comes last, "on the latent that the others have guided" (Alg. 2).

        g = g_o(z) + g_m(z + Σ·g_o(z))

    g_o is the gradient of the other features and g_m that of malignancy, each with its scale s and its mask. Σ·g_o is
    the shift of the mean that g_o makes in this step (eq. 3.5). Where malignancy is not asked for, or nothing else is,
    one evaluation gives the same.

    Args:
        gradient: function of crops and features that gives s·g.
        crops: z, (N, c, 16, 16), variance preserving.
        features: the features that guide.
        variance: Σ of the step, from `step_variances`; a 0-dim tensor.

    Returns:
        The gradient, of the shape of `crops`.
    """
    others = [feature for feature in features if feature != "malignancy"]
    if not others or len(others) == len(features):
        return gradient(crops, features)
    g = gradient(crops, others)
    return g + gradient(crops + variance * g, ["malignancy"])
