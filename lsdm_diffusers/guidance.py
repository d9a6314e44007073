"""Classifier guidance for any scheduler, and its masked, local form for nodules (thesis, section 3.4).

Which formula. With z_t = α·z_0 + σ·noise the score is -ε/σ, so adding s·g, g = ∇ log p(y | z_t), to the score means
ε̂ = ε - s·σ·g (Dhariwal & Nichol 2021, Alg. 2), applied to the model output *before* `scheduler.step`. It holds in every scheduler's
own coordinates. The thesis prints s·σ_t·log p added to the DDPM mean (eq. 3.6, Alg. 2); read literally that lacks the gradient sign,
uses σ_t where its own eq. 3.5 has Σ = σ_t², and under DDIM with η = 0 it vanishes.
"""

from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F


def noise_level(scheduler, timestep) -> tuple[torch.Tensor, torch.Tensor]:
    """(α, σ) with z_t = α·z_0 + σ·noise at `timestep`, asked of the scheduler itself; 0-dim float32 tensors.

    Args:
        scheduler: any diffusers scheduler with `add_noise`, or with `scale_noise` (flow matching).
        timestep: one of `scheduler.timesteps`.
    """
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


def guide_model_output(model_output, gradient, alpha, sigma, prediction_type: str) -> torch.Tensor:
    """Shift the model output so that its score becomes score + gradient.

    Args:
        model_output: (B, c, h, w), as the U-Net gave it.
        gradient: s·g, g = ∇ log p(y | z_t) with respect to the scheduler's latents, of the same shape.
        alpha, sigma: from `noise_level`.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
    """
    if prediction_type == "epsilon":
        return model_output - sigma * gradient
    if prediction_type in ("sample", "v_prediction", "flow_prediction") and alpha == 0:
        # pure noise (first step of flow matching or of zero terminal SNR): z_t tells nothing of z_0, its true gradient is 0
        return model_output
    if prediction_type == "sample":
        return model_output + sigma**2 / alpha * gradient
    if prediction_type == "v_prediction":
        return model_output - sigma * (alpha**2 + sigma**2) ** 0.5 / alpha * gradient
    if prediction_type == "flow_prediction":
        return model_output - sigma / alpha * gradient
    raise ValueError(
        f'`prediction_type` is {prediction_type!r}, but "epsilon", "sample", "v_prediction" or "flow_prediction" is needed.'
    )


def nodule_mask(nodule: torch.Tensor, latent_size: tuple[int, int], dilation: int = 1) -> torch.Tensor:
    """Boolean mask, (h, w), of where guidance acts: the nodule max-pooled to latent resolution and dilated by `dilation` latents.

    The thesis prints the mask as (1 - M) with M = 1 *outside* the dilated nodule (eq. 3.8); this is 1 - M.

    Args:
        nodule: boolean mask of one nodule, (H, W), in pixels.
    """
    pooled = F.adaptive_max_pool2d(nodule[None, None].float(), latent_size)
    return F.max_pool2d(pooled, 2 * dilation + 1, stride=1, padding=dilation)[0, 0] > 0


@contextmanager
def frozen(*modules: torch.nn.Module):
    """Meanwhile no parameter of the modules asks for gradients: guidance wants those of the latents alone, and is faster so."""
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def classifier_gradient(
    crops, timestep, decode, classifiers, targets, scales, keep_weights: bool = True
) -> torch.Tensor:
    """Σ_i s_i ∇ log p_i(y_i | D(crop), t) with respect to latent crops (thesis, eq. 3.7, 3.8), one decode for all classifiers.

    Args:
        crops: (N, c, 16, 16) latents, one crop a nodule, in the noising the classifiers were trained on (variance preserving).
        timestep: 0-dim tensor or number.
        decode: maps latents to pixels; the decoder's own scaling included.
        classifiers: {feature: classifier with `log_prob(image, timestep, target)`}.
        targets: {feature: (N,) tensor}; NaN where a nodule does not ask for the feature.
        scales: {feature: s}.
        keep_weights: hold the weights that the forward saw until the backward: group offload moves them in between. Without it, faster.

    Raises:
        RuntimeError: under `torch.inference_mode`, which forbids gradients.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Guidance needs gradients, which `torch.inference_mode` forbids; use `torch.no_grad` or nothing around the call."
        )
    # group offload puts other memory into the parameters after each forward: keep the tensors that the forward saw
    as_seen = (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)
        if keep_weights
        else nullcontext()
    )
    with torch.enable_grad(), as_seen:
        crops = crops.detach().requires_grad_(True)
        images = decode(crops)
        total = images.new_zeros((), dtype=torch.float32)
        for feature, classifier in classifiers.items():
            asked = ~torch.isnan(targets[feature])
            if asked.any() and scales[feature]:
                log_prob = classifier.log_prob(images[asked], timestep, targets[feature][asked])
                # a sum, never a mean: sample i of a batch gets what it would get alone
                total = total + scales[feature] * log_prob.float().sum()
        if not total.requires_grad:
            return torch.zeros_like(crops)
        return torch.autograd.grad(total, crops)[0]
