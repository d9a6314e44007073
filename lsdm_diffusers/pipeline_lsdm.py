"""LSDMGuidedPipeline: semantic map in, CT slice out, nodules guided by gradients of classifiers (thesis, Alg. 2)."""

import copy
import inspect
import math
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor

from .guidance import (
    check_gradients_allowed,
    classifier_gradient,
    frozen,
    guide_model_output,
    noise_levels,
    sequential_gradient,
    step_variances,
)
from .latents import decode_latents, encode_map
from .models.nodule_classifier import NoduleClassifier
from .models.unet_spade import SpadeUNet2DModel
from .nodule_batch import NoduleBatch, NoduleFeatures, guided_nodules
from .nodule_features import NODULE_FEATURES
from .semantic_map_pipeline import (
    HUB_ARGUMENTS,
    PIXEL_OUTPUT_TYPES,
    LSDMPipelineOutput,
    MapSources,
    SemanticMapPipeline,
)

GradientHook = Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]

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
_INTERPOLATED = "its interpolated second step has a noise level it does not report"
UNGUIDABLE_SCHEDULERS = {"KDPM2DiscreteScheduler": _INTERPOLATED, "DPMSolverSDEScheduler": _INTERPOLATED}
DEFAULT_SCALE = 1.0  # Bayes' rule
OUTPUT_TYPES = (*PIXEL_OUTPUT_TYPES, "latent")


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


@dataclass
class _Guidance:
    """What no step of a guided call changes; settled before the first step, so that no step waits for the device."""

    nodules: NoduleBatch
    order: str
    mask: torch.Tensor  # (B, 1, h, w), boolean: where each image is guided
    timesteps: list[float]
    alphas: torch.Tensor  # (T,), as the next two
    sigmas: torch.Tensor
    variances: torch.Tensor
    modules: list[torch.nn.Module]  # what the gradient passes through
    offloaded: bool  # whether group offload moves their weights between forward and backward pass


class LSDMGuidedPipeline(SemanticMapPipeline):
    r"""
    Generates lung CT slices from semantic maps, with nodules as benign or malignant, smooth or spiculated as asked.

    Args:
        vae: autoencoder of CT slices, one channel; its `scaling_factor` is 1 / std of the training latents.
        unet: denoiser of the latents.
        scheduler: any diffusers scheduler that does not clip its sample.
        malignancy_classifier, lobulation_classifier, spiculation_classifier, texture_classifier: optional; each
            feature that `nodule_features` asks for needs its own.

    Attributes:
        gradient_hook: function that exchanges the gradient of each guided step, or None. It is called as
            `hook(gradient, timestep, mask)`: s·g of all nodules and features with respect to the latents,
            (B, c, h, w), zero outside the nodules; the timestep, a number; and where the nodules are guided,
            (B, 1, h, w), boolean. What it returns guides the step. It belongs to this pipeline object alone: another
            one with the same components keeps its own.

    Example:
        >>> from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
        >>> pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())  # doctest: +SKIP
        >>> pipe("map.png", nodule_features={"malignancy": "malignant"}).images[0].save("ct.png")  # doctest: +SKIP
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = [f"{feature}_classifier" for feature in NODULE_FEATURES]
    _callback_tensor_inputs = ["latents"]

    vae: AutoencoderKL
    unet: SpadeUNet2DModel
    scheduler: SchedulerMixin
    malignancy_classifier: NoduleClassifier | None
    lobulation_classifier: NoduleClassifier | None
    spiculation_classifier: NoduleClassifier | None
    texture_classifier: NoduleClassifier | None
    gradient_hook: GradientHook | None = None
    _guidance_scale: float | Mapping[str, float]
    _num_timesteps: int
    _interrupt: bool = False

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: SpadeUNet2DModel,
        scheduler: SchedulerMixin,
        malignancy_classifier: NoduleClassifier | None = None,
        lobulation_classifier: NoduleClassifier | None = None,
        spiculation_classifier: NoduleClassifier | None = None,
        texture_classifier: NoduleClassifier | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            malignancy_classifier=malignancy_classifier,
            lobulation_classifier=lobulation_classifier,
            spiculation_classifier=spiculation_classifier,
            texture_classifier=texture_classifier,
        )
        self._trained_prediction: str | None = None
        if scheduler is not None:
            self._trained_prediction = trained_prediction(type(scheduler).__name__, scheduler.config)
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1) if getattr(self, "vae", None) else 4

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load the pipeline as `DiffusionPipeline.from_pretrained` does, from a folder or the Hub.

        What the U-Net predicts is read from the saved scheduler, also where `scheduler=` replaces it.
        """
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if kwargs.get("scheduler") is not None:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            config = DDPMScheduler.load_config(pretrained_model_name_or_path, subfolder="scheduler", **hub)
            pipe._trained_prediction = trained_prediction(config["_class_name"], config)
        return pipe

    def enable_vae_slicing(self) -> None:
        """Decode one slice at a time: `vae.enable_slicing()`. The pipeline does so in any case."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Undo `enable_vae_slicing`."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode slices larger than `vae.config.sample_size` in tiles: `vae.enable_tiling()`."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Undo `enable_vae_tiling`."""
        self.vae.disable_tiling()

    @property
    def classifiers(self) -> dict[str, NoduleClassifier]:
        """The classifiers that the pipeline has, by feature."""
        by_feature = {feature: getattr(self, f"{feature}_classifier") for feature in NODULE_FEATURES}
        return {feature: classifier for feature, classifier in by_feature.items() if classifier is not None}

    @property
    def guidance_scale(self) -> float | Mapping[str, float]:
        """s of the last call. A callback may set `_guidance_scale` of the pipeline it gets, for the next steps.

        A call that starts with scale 0 stays unguided.
        """
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a call stops before its next step.

        A callback sets `_interrupt` of the pipeline it gets, for its own call; set on the pipeline itself, it stops
        the calls that run.
        """
        return self._interrupt

    def _check_inputs(
        self,
        guidance_scale: float | Mapping[str, float],
        guidance_order: str,
        output_type: str,
        tensor_inputs: list[str],
    ) -> None:
        scales = guidance_scale
        if not isinstance(scales, Mapping):
            scales = dict.fromkeys(NODULE_FEATURES, scales)
        for feature, scale in scales.items():
            if feature not in NODULE_FEATURES:
                raise ValueError(
                    f"`guidance_scale` has the key {feature!r}, but the features are {', '.join(NODULE_FEATURES)}."
                )
            is_number = isinstance(scale, (int, float, np.number)) and not isinstance(scale, bool)
            if not is_number or not math.isfinite(scale) or scale < 0:
                raise ValueError(f"`guidance_scale` is {scale!r}, but a finite number of at least 0 is needed.")
        if guidance_order not in ("sequential", "joint"):
            raise ValueError(f'`guidance_order` is {guidance_order!r}, but "sequential" or "joint" is needed.')
        self._check_output_type(output_type, OUTPUT_TYPES)
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown[0]!r}, but only {self._callback_tensor_inputs} "
                "are allowed."
            )

    def _check_scheduler(self) -> str:
        """Raise ValueError for a scheduler that does not fit the model; return what the model predicts."""
        name, config = type(self.scheduler).__name__, self.scheduler.config
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
        taken = taken_prediction(self.scheduler)
        if taken is None:
            raise ValueError(
                f"`scheduler` is {name}, but one with a `prediction_type` is needed, such as "
                "DPMSolverMultistepScheduler."
            )
        if self._trained_prediction not in (None, taken):
            raise ValueError(
                f"`scheduler` ({name}) takes {taken}, but the checkpoint's scheduler says that the U-Net predicts "
                f"{self._trained_prediction}; use a scheduler made by `from_config(pipe.scheduler.config)`, such as "
                "DPMSolverMultistepScheduler."
            )
        return taken

    def _schedule_arguments(
        self, num_inference_steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
    ) -> dict[str, Any]:
        """The arguments of `scheduler.set_timesteps`, without the device."""
        if timesteps is not None and sigmas is not None:
            raise ValueError("`timesteps` and `sigmas` are both given, but a call takes one of them.")
        for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
            if values is None:
                continue
            if name not in inspect.signature(self.scheduler.set_timesteps).parameters:
                raise ValueError(
                    f"`{name}` is given, but `scheduler` ({type(self.scheduler).__name__}) makes its own; use "
                    "`num_inference_steps`, or another scheduler."
                )
            if len(values) == 0:
                raise ValueError(f"`{name}` is empty, but at least one step is needed.")
            return {name: torch.as_tensor(values).tolist()}
        return {"num_inference_steps": num_inference_steps}

    def _try_scheduler(self, schedule: dict[str, Any], device: torch.device) -> None:
        """Raise ValueError, before any work, for a scheduler that cannot make its schedule or its first step."""
        scheduler = copy.deepcopy(self.scheduler)
        try:
            # a step may draw noise, which must not change what the call draws
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                scheduler.set_timesteps(**schedule, device=device)
                latents = torch.zeros(1, self.vae.config.latent_channels, 8, 8, device=device)
                first = scheduler.timesteps[0]
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(latents, first)
                scheduler.step(latents, first, latents)
        except Exception as error:  # whatever the scheduler raises: a missing package, a combination it does not have
            raise ValueError(
                f"`scheduler` is {type(scheduler).__name__}, but it fails with {type(error).__name__} in a first "
                f"trial step: {' '.join(str(error).split())}"
            ) from error

    def _new_call(
        self, guidance_scale: float | Mapping[str, float], schedule: dict[str, Any], device: torch.device
    ) -> "LSDMGuidedPipeline":
        """This pipeline with the scheduler, scale and interrupt of one call, so that threads may share a pipeline."""
        call = copy.copy(self)
        call.scheduler = copy.deepcopy(self.scheduler)
        call.scheduler.set_timesteps(**schedule, device=device)
        call._num_timesteps = len(call.scheduler.timesteps)
        call._guidance_scale = guidance_scale
        call._interrupt = False
        return call

    def _guided_nodules(
        self,
        maps: np.ndarray,
        nodule_features: NoduleFeatures | None,
        num_images_per_map: int,
        device: torch.device,
    ) -> NoduleBatch | None:
        """The nodules that a call guides, or None; warn where the call asks for guidance that does nothing."""
        scales = self._feature_scales()
        if nodule_features is None:
            if not {0.0, DEFAULT_SCALE}.issuperset(scales.values()):
                warnings.warn(
                    f"`guidance_scale` is {self._guidance_scale}, but there are no `nodule_features`, so nothing is "
                    "guided.",
                    stacklevel=4,  # the line that calls the pipeline, past `__call__` and `torch.no_grad`
                )
            return None
        factor = self.vae_scale_factor
        nodules = guided_nodules(maps, nodule_features, self.classifiers, num_images_per_map, factor, device)
        if nodules is None or not any(scales[feature] for feature in nodules.targets):
            return None  # scale 0 of every feature asked for is exactly no guidance
        self._check_guidable()
        return nodules

    def _check_guidable(self) -> None:
        """Raise an error where guidance would fail or be wrong: by the scheduler, or by how the call is made."""
        check_gradients_allowed()
        name = type(self.scheduler).__name__
        if name in UNGUIDABLE_SCHEDULERS:
            raise ValueError(
                f"`scheduler` is {name}, but {UNGUIDABLE_SCHEDULERS[name]}, so guidance would be wrong; use another, "
                "such as DPMSolverMultistepScheduler."
            )
        if not hasattr(self.scheduler, "add_noise") and not hasattr(self.scheduler, "scale_noise"):
            raise ValueError(
                f"`scheduler` is {name}, but guidance needs one with `add_noise` or `scale_noise`, such as "
                "DPMSolverMultistepScheduler."
            )
        for name, module in {"vae": self.vae, **self.classifiers}.items():
            if any(parameter.device.type == "meta" for parameter in module.parameters()):
                raise RuntimeError(
                    f"The weights of {name} are off the device (sequential offload), which gives no gradients; use "
                    "`enable_model_cpu_offload()` or `enable_group_offload()`."
                )

    def _settle_guidance(self, nodules: NoduleBatch, order: str, shape: tuple[int, ...]) -> _Guidance:
        """Settle before the first step what no step changes, so that no step waits for the device."""
        timesteps = self.scheduler.timesteps
        alphas, sigmas = noise_levels(self.scheduler, timesteps)
        device = nodules.masks.device
        decoder = [part for name, part in self.vae.named_children() if name not in ("encoder", "quant_conv")]
        modules = [*decoder, *(self.classifiers[feature] for feature in nodules.targets)]
        return _Guidance(
            nodules=nodules,
            mask=nodules.paste(nodules.masks.float(), (shape[0], 1, *shape[2:])) > 0,
            order=order,
            timesteps=timesteps.tolist(),
            alphas=alphas.to(device),
            sigmas=sigmas.to(device),
            variances=step_variances(alphas, sigmas).to(device),
            modules=modules,
            offloaded=any(hasattr(part, "_diffusers_hook") for module in modules for part in module.modules()),
        )

    def _feature_scales(self) -> dict[str, float]:
        scale = self._guidance_scale
        if isinstance(scale, Mapping):
            return {feature: float(scale.get(feature, DEFAULT_SCALE)) for feature in NODULE_FEATURES}
        return dict.fromkeys(NODULE_FEATURES, float(scale))

    def _nodule_gradient(
        self, latents: torch.Tensor, step: int, timestep: torch.Tensor, guidance: _Guidance
    ) -> torch.Tensor:
        """s·g summed over nodules and features, with respect to the scheduler's latents; zero outside the masks."""
        nodules, scales, classifiers = guidance.nodules, self._feature_scales(), self.classifiers
        # Schedulers of the sigma kind keep z_0 + σ·noise; the classifiers know its variance-preserving form.
        norm = torch.hypot(guidance.alphas[step], guidance.sigmas[step])
        image_dtype = next(iter(classifiers.values())).dtype

        def decode(crops: torch.Tensor) -> torch.Tensor:
            return decode_latents(self.vae, crops).to(image_dtype)

        def gradient(crops: torch.Tensor, features: Collection[str]) -> torch.Tensor:
            asked = {feature: classifiers[feature] for feature in features}
            g = classifier_gradient(
                crops, timestep, decode, asked, nodules.targets, scales, nodules.rows, keep_weights=guidance.offloaded
            )
            return g * nodules.masks

        crops = nodules.crops(latents).float() / norm
        features = [feature for feature in nodules.targets if scales[feature]]
        if guidance.order == "sequential":
            g = sequential_gradient(gradient, crops, features, guidance.variances[step])
        else:
            g = gradient(crops, features)
        g = nodules.paste(g / norm, latents.shape)
        return g if self.gradient_hook is None else self.gradient_hook(g, guidance.timesteps[step], guidance.mask)

    @torch.no_grad()
    def __call__(
        self,
        semantic_map: MapSources,
        nodule_features: NoduleFeatures | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float | Mapping[str, float] = DEFAULT_SCALE,
        guidance_order: str = "sequential",
        eta: float = 0.0,
        num_images_per_map: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - diffusers' signature
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> LSDMPipelineOutput | tuple[Any, ...]:
        """Generate `num_images_per_map` slices of each map.

        Args:
            semantic_map: PIL image, array, tensor or path (PNG, .npy, NIfTI) of one map (H, W), a batch (B, H, W), or
                a list of them; integer labels 0..7, H and W multiples of what autoencoder and U-Net together halve.
            nodule_features: None (no guidance), a dict for every nodule of every map, or a list with one entry per
                map, each a dict or a list of dicts, one per nodule in the order of `find_nodules`. Keys: malignancy
                ("benign", "malignant" or 1..5), lobulation, spiculation, texture (1..5).
            num_inference_steps: denoising steps.
            guidance_scale: s, one number or one per feature. 0 is exactly the unguided sample, 1 is Bayes' rule.
            guidance_order: "sequential" (malignancy last, on the latent that the others have guided; the thesis'
                order), or "joint".
            eta: η of DDIM and TCD, in [0, 1]; other schedulers ignore it.
            num_images_per_map: images of each map; they share one modulation.
            generator: one generator, or a list with one per image.
            latents: starting noise, (images, c, H / f, W / f), instead of noise from `generator`.
            output_type: "pil" (mode L), "np" or "pt" in [0, 1], "hu" (int16), "latent".
            return_dict: whether to return `LSDMPipelineOutput` or a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, kwargs)` after each step; may return
                changed tensors. `pipe` is this pipeline with the state of the call: the scheduler that takes the
                steps, `_guidance_scale` and `_interrupt`.
            callback_on_step_end_tensor_inputs: names of the tensors handed to the callback: "latents".
            timesteps: the timesteps themselves, falling, for schedulers that take them, instead of
                `num_inference_steps`.
            sigmas: the same as noise levels, falling; some schedulers, such as Euler's, want the last one, 0, as well.

        Warns:
            UserWarning: for guidance that does nothing: a scale without features, or features on a map without
                nodules.

        Raises:
            ValueError: for a bad argument, which is named, before any work is done.
            RuntimeError: for guidance under `torch.inference_mode` or with sequential offload.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._check_inputs(guidance_scale, guidance_order, output_type, callback_on_step_end_tensor_inputs)
        self._check_count("num_images_per_map", num_images_per_map)
        self._check_count("num_inference_steps", num_inference_steps)
        levels_of_unet = len(self.unet.config.block_out_channels)
        maps = self._read_maps(semantic_map, self.vae_scale_factor * 2 ** (levels_of_unet - 1))
        device = self._execution_device
        batch_size = len(maps) * num_images_per_map
        latent_size = (maps.shape[1] // self.vae_scale_factor, maps.shape[2] // self.vae_scale_factor)
        shape = (batch_size, self.vae.config.latent_channels, *latent_size)
        self._check_generators(generator, batch_size)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}, but {shape} is needed.")
        prediction_type = self._check_scheduler()
        schedule = self._schedule_arguments(num_inference_steps, timesteps, sigmas)

        self._try_scheduler(schedule, device)
        self._interrupt = False
        call = self._new_call(guidance_scale, schedule, device)
        nodules = call._guided_nodules(maps, nodule_features, num_images_per_map, device)

        steps = call.scheduler.timesteps
        num_inference_steps = schedule.get("num_inference_steps", len(steps))
        step_arguments = inspect.signature(call.scheduler.step).parameters
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in step_arguments}
        guidance = None if nodules is None else call._settle_guidance(nodules, guidance_order, shape)

        # Noise, in float32 whatever the models' dtype is: a scheduler's arithmetic in bfloat16 loses small steps.
        dtype = torch.float32
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device=device, dtype=dtype) * getattr(call.scheduler, "init_noise_sigma", 1.0)

        # What the map gives, once: E(m), and γ, β of every SPADE layer.
        labels = torch.from_numpy(maps).to(device)
        map_latents = encode_map(self.vae, labels)
        map_latents = map_latents.repeat_interleave(num_images_per_map, dim=0).to(self.unet.dtype)
        modulation: tuple[Any, ...] = ()
        if self.unet.config.spade_blocks != "none":
            modulation = self.unet.compute_modulation(labels.long(), latent_size)

        modules = [] if guidance is None else guidance.modules
        with frozen(*modules), self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(steps):
                if call._interrupt or self._interrupt:
                    break
                model_input = latents
                if hasattr(call.scheduler, "scale_model_input"):
                    model_input = call.scheduler.scale_model_input(latents, t)
                model_input = torch.cat([model_input.to(self.unet.dtype), map_latents], dim=1)
                model_output = self.unet(model_input, t, modulation=modulation).sample.to(dtype)
                if guidance is not None:
                    gradient = call._nodule_gradient(latents, i, t, guidance)
                    model_output = guide_model_output(
                        model_output, gradient, guidance.alphas[i], guidance.sigmas[i], prediction_type
                    )
                latents = call.scheduler.step(model_output, t, latents, **extra).prev_sample
                if callback_on_step_end is not None:
                    callback_kwargs = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                    latents = callback_on_step_end(call, i, t, callback_kwargs).pop("latents", latents)
                order = getattr(call.scheduler, "order", 1)
                is_whole_step = i == len(steps) - 1 or (i + 1) % order == 0
                if is_whole_step and progress_bar.n < num_inference_steps:
                    progress_bar.update()
        self._guidance_scale, self._num_timesteps = call._guidance_scale, call._num_timesteps
        del modulation, map_latents  # the modulation of a 512x512 map is hundreds of MB at full size

        if output_type == "latent":
            images = latents
        else:
            # One at a time: a decoded batch of full slices is the peak of memory, and an image must not depend on its
            # neighbours.
            pixels = torch.cat([decode_latents(self.vae, z[None]).float().cpu() for z in latents]).clamp(-1, 1)
            images = self._postprocess(pixels, output_type)
        self.maybe_free_model_hooks()
        return LSDMPipelineOutput(images=images) if return_dict else (images,)
