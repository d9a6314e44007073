"""Guidance against a closed form.

With x0 ~ N(0, 1), y = x0 + N(0, 0.25) and y = 1.5, the posterior has mean 1.2 and variance 0.2.
"""

import diffusers
import pytest
import torch

from lsdm_diffusers.guidance import (
    classifier_gradient,
    frozen,
    guide_model_output,
    nodule_mask,
    noise_level,
    noise_levels,
    sequential_gradient,
    step_variances,
)
from lsdm_diffusers.nodule_crop import CROP, crop_box

from .conftest import BETAS

Y, NOISE = 1.5, 0.25
VP = {**BETAS, "num_train_timesteps": 1000}
SCHEDULERS = [
    ("DDPMScheduler", {"clip_sample": False}, 1000),
    ("DDIMScheduler", {"clip_sample": False}, 50),
    ("DDIMScheduler eta", {"clip_sample": False}, 100),
    ("PNDMScheduler", {}, 50),
    ("DPMSolverMultistepScheduler", {}, 25),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 25),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 50),
    ("DPMSolverSinglestepScheduler", {}, 25),
    ("UniPCMultistepScheduler", {}, 25),
    ("DEISMultistepScheduler", {}, 25),
    ("EulerDiscreteScheduler", {}, 50),
    ("EulerAncestralDiscreteScheduler", {}, 100),
    ("HeunDiscreteScheduler", {}, 25),
    ("LMSDiscreteScheduler", {}, 25),
    ("FlowMatchEulerDiscreteScheduler", {}, 100),
]


def guided_samples(name, config, steps, prediction_type="epsilon", count=20000):
    """Sample with the exact denoiser and the exact noisy classifier through the functions the pipeline uses."""
    flow = name.startswith("FlowMatch")
    settings = {} if flow else {**VP, "prediction_type": prediction_type}
    scheduler = getattr(diffusers, name.split()[0])(**{**settings, **config})
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    extra = {"eta": 1.0} if name.endswith("eta") else {}
    if name.split()[0] not in (
        "PNDMScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "DPMSolverSinglestepScheduler",
    ):
        extra["generator"] = generator
    if name in ("LMSDiscreteScheduler", "HeunDiscreteScheduler"):
        extra.pop("generator")
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        alpha, sigma = noise_level(scheduler, t)
        total = alpha**2 + sigma**2
        x0 = alpha * x / total
        noise = sigma * x / total
        # p(y | x_t): x0 | x_t ~ N(alpha x / total, sigma^2 / total)
        gradient = (Y - x0) / (sigma**2 / total + NOISE) * alpha / total
        if flow:
            output, kind = noise - x0, "flow_prediction"
        else:
            v = (alpha * noise - sigma * x0) / total.sqrt()
            output, kind = {"epsilon": noise, "sample": x0, "v_prediction": v}[prediction_type], prediction_type
        x = scheduler.step(guide_model_output(output, gradient, alpha, sigma, kind), t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize(("name", "config", "steps"), SCHEDULERS, ids=lambda value: str(value))
def test_guided_samples_have_the_known_posterior(name, config, steps):
    x = guided_samples(name, config, steps)
    assert abs(x.mean().item() - 1.2) < 0.03
    assert abs(x.var().item() - 0.2) < 0.06


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_prediction_types_agree_with_epsilon(prediction_type):
    expected = guided_samples("DDIMScheduler", {"clip_sample": False}, 50)
    x = guided_samples("DDIMScheduler", {"clip_sample": False}, 50, prediction_type)
    torch.testing.assert_close(x, expected, atol=2e-3, rtol=2e-3)


def test_noise_level_matches_the_closed_form_of_ddpm():
    scheduler = diffusers.DDPMScheduler(**VP, clip_sample=False)
    alpha, sigma = noise_level(scheduler, torch.tensor(300))
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod[300])
    torch.testing.assert_close(alpha**2 + sigma**2, torch.tensor(1.0))


@pytest.mark.parametrize(("name", "config", "steps"), SCHEDULERS, ids=lambda value: str(value))
def test_levels_asked_before_the_loop_are_those_inside_it(name, config, steps):
    """Schedulers keep a state (their step index) that `add_noise` must not depend on."""
    flow = name.startswith("FlowMatch")
    scheduler = getattr(diffusers, name.split()[0])(**{**({} if flow else VP), **config})
    scheduler.set_timesteps(min(steps, 10))
    alphas, sigmas = noise_levels(scheduler, scheduler.timesteps)
    assert alphas.shape == sigmas.shape == scheduler.timesteps.shape
    x = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    for t, alpha, sigma in zip(scheduler.timesteps, alphas, sigmas, strict=True):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        assert noise_level(scheduler, t) == (alpha, sigma)
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
        assert noise_level(scheduler, t) == (alpha, sigma)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_a_level_that_the_schedule_does_not_have_is_refused(name):
    """diffusers would answer with the level of another timestep."""
    scheduler = getattr(diffusers, name)(**VP, use_karras_sigmas=True)
    with pytest.raises(ValueError, match=f"`scheduler` .{name}. has no schedule yet"):
        noise_level(scheduler, 300)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=f"`timestep` is -3, but {name} knows"):
        noise_level(scheduler, -3)
    alpha, sigma = noise_level(scheduler, scheduler.timesteps[4])
    torch.testing.assert_close(sigma / alpha, scheduler.sigmas[4])


def test_variances_of_the_steps_are_those_of_ddpm():
    scheduler = diffusers.DDPMScheduler(**VP, clip_sample=False)
    scheduler.set_timesteps(1000)
    variances = step_variances(*noise_levels(scheduler, scheduler.timesteps))
    torch.testing.assert_close(variances, scheduler.betas.flip(0), atol=1e-6, rtol=1e-3)
    scheduler.set_timesteps(10)
    last = step_variances(*noise_levels(scheduler, scheduler.timesteps))[-1]
    torch.testing.assert_close(last, 1 - scheduler.alphas_cumprod[0], atol=1e-6, rtol=0)


def test_sequential_rule_takes_malignancy_at_the_shifted_latent():
    calls = []

    def gradient(crops, features):
        calls.append(list(features))
        return 2 * crops + len(features)

    z, variance = torch.tensor([1.0]), torch.tensor(0.5)
    others = 2 * z + 2
    expected = others + 2 * (z + variance * others) + 1
    assert sequential_gradient(gradient, z, ["malignancy", "lobulation", "texture"], variance) == expected
    assert calls == [["lobulation", "texture"], ["malignancy"]]
    calls.clear()
    for features in (["malignancy"], ["lobulation", "texture"]):
        assert sequential_gradient(gradient, z, features, variance) == 2 * z + len(features)
    assert calls == [["malignancy"], ["lobulation", "texture"]]


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "flow_prediction"])
def test_pure_noise_is_not_guided(prediction_type):
    output, gradient = torch.randn(2, 3), torch.randn(2, 3)
    guided = guide_model_output(output, gradient, torch.tensor(0.0), torch.tensor(1.0), prediction_type)
    assert torch.equal(guided, output)


def test_unknown_prediction_type_is_named():
    with pytest.raises(ValueError, match="'noise'"):
        guide_model_output(torch.zeros(1), torch.zeros(1), 1, 1, "noise")


@pytest.mark.parametrize(
    ("centroid", "expected"),
    [((255.5, 255.5), (56, 56, 72, 72)), ((0, 0), (0, 0, 16, 16)), ((511, 300), (112, 67, 128, 83))],
    ids=["centre", "corner", "bottom"],
)
def test_crop_is_centred_and_stays_in_the_frame(centroid, expected):
    assert crop_box(centroid, (128, 128), 4) == expected
    assert CROP // 4 == 16


def test_mask_covers_a_nodule_of_one_pixel_and_its_neighbours():
    nodule = torch.zeros(64, 64, dtype=torch.bool)
    nodule[21, 33] = True
    mask = nodule_mask(nodule, (16, 16))
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:7, 7:10] = True
    assert torch.equal(mask, expected)


def test_gradient_is_that_of_a_gaussian_and_a_sum_over_the_batch():
    class Gaussian:
        def log_prob(self, image, timestep, target, check_target=True):
            return -((image.mean(dim=(1, 2, 3)) - target) ** 2)

    crops = torch.randn(3, 1, 4, 4)
    targets, rows = {"texture": torch.tensor([2.0, 4.0])}, {"texture": torch.tensor([0, 2])}
    gradient = classifier_gradient(crops, 0, lambda z: z, {"texture": Gaussian()}, targets, {"texture": 3.0}, rows)
    means = crops.mean(dim=(1, 2, 3))
    expected = 3 * -2 * (means - torch.tensor([2.0, 0.0, 4.0])) / 16 * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(gradient, expected[:, None, None, None].expand_as(crops))


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        classifier_gradient(torch.zeros(1, 1, 4, 4), 0, lambda z: z, {}, {}, {})


def test_frozen_modules_get_back_what_they_had():
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"):
        with frozen(module):
            assert not module.weight.requires_grad and not module.bias.requires_grad
            raise RuntimeError("inside")
    assert module.weight.requires_grad and not module.bias.requires_grad


def test_overlapping_contexts_free_the_weights_at_the_last_end():
    module = torch.nn.Linear(2, 2)
    first, second = frozen(module), frozen(module)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not module.weight.requires_grad
    second.__exit__(None, None, None)
    assert module.weight.requires_grad and module.bias.requires_grad


def test_gradients_survive_weights_that_are_moved_after_each_forward():
    """Group offload exchanges a parameter's memory after its module has run; the backward pass needs the old one."""
    decoder = torch.nn.Conv2d(3, 1, 3, padding=1).requires_grad_(False)

    class Classifier:
        @staticmethod
        def log_prob(image, timestep, target, check_target=True):
            return image.square().flatten(1).sum(1)

    def gradient():
        return classifier_gradient(
            crops, 0, decoder, {"texture": Classifier}, {"texture": torch.zeros(1)}, {"texture": 1.0}
        )

    crops = torch.randn(1, 3, 16, 16)
    expected = gradient()
    weights = [parameter.data for parameter in decoder.parameters()]

    def offload(*_):
        for parameter in decoder.parameters():
            parameter.data = torch.zeros_like(parameter.data)

    def onload(*_):
        for parameter, data in zip(decoder.parameters(), weights, strict=True):
            parameter.data = data

    decoder.register_forward_pre_hook(onload)
    decoder.register_forward_hook(offload)
    torch.testing.assert_close(gradient(), expected, atol=0, rtol=0)
