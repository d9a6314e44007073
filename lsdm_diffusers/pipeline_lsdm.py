"""LSDMGuidedPipeline: semantic map in, CT slice out, nodules guided by the gradients of small classifiers (thesis, Algorithm 2)."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor

from .guidance import classifier_gradient, frozen, guide_model_output, nodule_mask, noise_level
from .labels import NUM_LABELS
from .models.nodule_classifier import NoduleClassifier
from .models.unet_spade import SpadeUNet2DModel
from .nodule_crop import crop_box
from .nodule_features import NODULE_FEATURES, feature_target
from .semantic_map import find_nodules
from .semantic_map_pipeline import LSDMPipelineOutput, SemanticMapPipeline

_INTERPOLATED = "its interpolated second step has a noise level it does not report"
_PRECONDITIONED = "its model's output is preconditioned, neither noise, v nor sample"
UNGUIDABLE_SCHEDULERS = {
    "KDPM2DiscreteScheduler": _INTERPOLATED,
    "DPMSolverSDEScheduler": _INTERPOLATED,
    "EDMEulerScheduler": _PRECONDITIONED,
    "EDMDPMSolverMultistepScheduler": _PRECONDITIONED,
    "CosineDPMSolverMultistepScheduler": _PRECONDITIONED,
    "CMStochasticIterativeScheduler": _PRECONDITIONED,
}
OUTPUT_TYPES = ("pil", "np", "pt", "hu", "latent")


@dataclass
class _NoduleBatch:
    """The guided nodules of a call, one entry each."""

    image: list[int]  # index into the batch of images
    box: list[tuple[int, int, int, int]]  # of its crop in the latents, y0 x0 y1 x1
    mask: torch.Tensor  # (N, 1, edge, edge): where in the crop guidance acts
    targets: dict[str, torch.Tensor]  # feature -> (N,); NaN where it is not asked for


class LSDMGuidedPipeline(SemanticMapPipeline):
    r"""
    Generates lung CT slices from semantic maps, with nodules as benign or malignant, smooth or spiculated as asked.

    Args:
        vae: autoencoder of CT slices, one channel; its `scaling_factor` is 1 / std of the training latents.
        unet: denoiser of the latents.
        scheduler: any diffusers scheduler that does not clip its sample.
        malignancy_classifier, lobulation_classifier, spiculation_classifier, texture_classifier: optional; each feature that
            `nodule_features` asks for needs its own.

    Example:
        >>> from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
        >>> pipe = LSDMGuidedPipeline.from_pretrained(small_checkpoint())  # doctest: +SKIP
        >>> pipe("map.png", nodule_features={"malignancy": "malignant"}).images[0].save("ct.png")  # doctest: +SKIP
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = [f"{feature}_classifier" for feature in NODULE_FEATURES]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: SpadeUNet2DModel,
        scheduler: SchedulerMixin,
        malignancy_classifier: NoduleClassifier | None = None,
        lobulation_classifier: NoduleClassifier | None = None,
        spiculation_classifier: NoduleClassifier | None = None,
        texture_classifier: NoduleClassifier | None = None,
    ):
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
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1) if getattr(self, "vae", None) else 4

    @property
    def classifiers(self) -> dict[str, NoduleClassifier]:
        """The classifiers that are there, by feature."""
        named = {feature: getattr(self, f"{feature}_classifier") for feature in NODULE_FEATURES}
        return {feature: classifier for feature, classifier in named.items() if classifier is not None}

    @property
    def guidance_scale(self):
        """s of the running call; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    def _feature_dicts(self, nodule_features, nodules: list[list]) -> list[list[dict]]:
        """One dict of features for each nodule of each map."""
        if isinstance(nodule_features, dict):
            return [[nodule_features] * len(of_map) for of_map in nodules]
        if not isinstance(nodule_features, (list, tuple)):
            raise ValueError(
                f"`nodule_features` is a {type(nodule_features).__name__}, but None, a dict or a list with one entry per map is needed."
            )
        if len(nodule_features) != len(nodules):
            raise ValueError(
                f"`nodule_features` has {len(nodule_features)} entries, but one for each of the {len(nodules)} maps is needed."
            )
        result = []
        for index, (entry, of_map) in enumerate(zip(nodule_features, nodules, strict=True)):
            dicts = [entry or {}] * len(of_map) if entry is None or isinstance(entry, dict) else list(entry)
            if len(dicts) != len(of_map):
                raise ValueError(
                    f"`nodule_features[{index}]` has {len(dicts)} entries, but the map has {len(of_map)} nodules."
                )
            for features in dicts:
                if features is not None and not isinstance(features, dict):
                    raise ValueError(
                        f"`nodule_features[{index}]` contains a {type(features).__name__}, but a dict for each nodule is needed."
                    )
            result.append([features or {} for features in dicts])
        return result

    def _nodule_batch(self, maps, nodule_features, images_per_map, latent_size, device) -> _NoduleBatch | None:
        """Everything about the guided nodules that no step changes; None where nothing is to be guided."""
        if nodule_features is None:
            return None
        nodules = [find_nodules(m) for m in maps]
        feature_dicts = self._feature_dicts(nodule_features, nodules)
        asked_of_all = (
            [nodule_features] if isinstance(nodule_features, dict) else []
        )  # checked even where no map has a nodule
        for features in asked_of_all + [features for of_map in feature_dicts for features in of_map]:
            for feature, value in features.items():
                feature_target(feature, value)
                if feature not in self.classifiers:
                    raise ValueError(
                        f"`nodule_features` asks for {feature}, but the pipeline has no `{feature}_classifier`."
                    )
        image, box, mask, targets = [], [], [], {feature: [] for feature in NODULE_FEATURES}
        for map_index, (of_map, dicts) in enumerate(zip(nodules, feature_dicts, strict=True)):
            for nodule, features in zip(of_map, dicts, strict=True):
                if not features:
                    continue
                y0, x0, y1, x1 = latent_box = crop_box(nodule.centroid_yx, latent_size, self.vae_scale_factor)
                inside = nodule_mask(torch.from_numpy(nodule.mask(maps[map_index].shape)), latent_size)[y0:y1, x0:x1]
                for copy in range(images_per_map):
                    image.append(map_index * images_per_map + copy)
                    box.append(latent_box)
                    mask.append(inside[None])
                    for feature in NODULE_FEATURES:
                        value = features.get(feature)
                        targets[feature].append(math.nan if value is None else feature_target(feature, value))
        if not image:
            return None
        tensors = {feature: torch.tensor(values, device=device) for feature, values in targets.items()}
        return _NoduleBatch(image, box, torch.stack(mask).to(device), tensors)

    def _scales(self) -> dict[str, float]:
        scale = self._guidance_scale
        return {
            feature: float(scale.get(feature, 1.0) if isinstance(scale, dict) else scale)
            for feature in NODULE_FEATURES
        }

    def _check_inputs(
        self, guidance_scale, guidance_order, num_images_per_map, num_inference_steps, output_type, tensor_inputs
    ):
        for option in ("clip_sample", "thresholding"):
            if getattr(self.scheduler.config, option, False):
                raise ValueError(
                    f"`scheduler` ({type(self.scheduler).__name__}) has {option}=True, but that clips latents, which are not bounded; "
                    f"use `from_config(config, {option}=False)`."
                )
        given = (
            guidance_scale
            if isinstance(guidance_scale, dict)
            else {feature: guidance_scale for feature in NODULE_FEATURES}
        )
        for feature, scale in given.items():
            if feature not in NODULE_FEATURES:
                raise ValueError(
                    f"`guidance_scale` has the key {feature!r}, but the features are {', '.join(NODULE_FEATURES)}."
                )
            if (
                isinstance(scale, bool)
                or not isinstance(scale, (int, float, np.number))
                or not (math.isfinite(scale) and scale >= 0)
            ):
                raise ValueError(f"`guidance_scale` is {scale!r}, but a finite number of at least 0 is needed.")
        if guidance_order not in ("sequential", "joint"):
            raise ValueError(f'`guidance_order` is {guidance_order!r}, but "sequential" or "joint" is needed.')
        if not isinstance(num_images_per_map, int) or num_images_per_map < 1:
            raise ValueError(
                f"`num_images_per_map` is {num_images_per_map!r}, but a whole number of at least 1 is needed."
            )
        if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps!r}, but a whole number of at least 1 is needed."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}, but one of {', '.join(OUTPUT_TYPES)} is needed.")
        wrong = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if wrong:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {wrong[0]!r}, but only {self._callback_tensor_inputs} are allowed."
            )

    def _check_guidable(self):
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "Guidance needs gradients, which `torch.inference_mode` forbids; use `torch.no_grad` or nothing around the call."
            )
        name = type(self.scheduler).__name__
        if name in UNGUIDABLE_SCHEDULERS:
            raise ValueError(
                f"`scheduler` is {name}, but {UNGUIDABLE_SCHEDULERS[name]}, so guidance would be wrong; use another, such as "
                "DPMSolverMultistepScheduler."
            )
        if not hasattr(self.scheduler, "add_noise") and not hasattr(self.scheduler, "scale_noise"):
            raise ValueError(
                f"`scheduler` is {name}, but guidance needs one with `add_noise` or `scale_noise`, such as DPMSolverMultistepScheduler."
            )
        for name, module in {"vae": self.vae, **self.classifiers}.items():
            if any(parameter.device.type == "meta" for parameter in module.parameters()):
                raise RuntimeError(
                    f"The weights of {name} are off the device (sequential offload), which gives no gradients; use "
                    "`enable_model_cpu_offload()` or `enable_group_offload()`."
                )

    def _decode_pixels(self, latents):
        dtype = self.vae.dtype
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(dtype)).sample

    def _guidance(self, latents, timestep, next_timestep, nodules: _NoduleBatch, order: str) -> torch.Tensor:
        """s·g summed over nodules and features, with respect to the scheduler's latents; zero outside the nodule masks."""
        scales = self._scales()
        alpha, sigma = (level.to(latents.device) for level in noise_level(self.scheduler, timestep))
        # schedulers of the sigma kind keep z_0 + σ·noise; the classifiers were trained on the variance-preserving form of it
        norm = torch.hypot(alpha, sigma)
        crops = torch.stack(
            [
                latents[image, :, y0:y1, x0:x1]
                for image, (y0, x0, y1, x1) in zip(nodules.image, nodules.box, strict=True)
            ]
        ).float()
        crops = crops / norm

        def gradient(crops, features):
            asked = {feature: c for feature, c in self.classifiers.items() if feature in features}
            image_dtype = next(iter(self.classifiers.values())).dtype
            decoding = [module for name, module in self.vae.named_children() if name not in ("encoder", "quant_conv")]
            hooked = any(
                hasattr(part, "_diffusers_hook")
                for module in (*decoding, *asked.values())
                for part in module.modules()
            )
            with frozen(*decoding, *asked.values()):
                decode = lambda z: self._decode_pixels(z).to(image_dtype)  # noqa: E731
                g = classifier_gradient(crops, timestep, decode, asked, nodules.targets, scales, keep_weights=hooked)
            return g * nodules.mask

        wanted = {
            feature for feature, target in nodules.targets.items() if scales[feature] and not torch.isnan(target).all()
        }
        if order == "joint" or "malignancy" not in wanted or wanted == {"malignancy"}:
            g = gradient(crops, wanted)
        else:
            g = gradient(crops, wanted - {"malignancy"})
            # "on the latent they have guided": shifted as eq. 3.5 shifts the mean, by Σ·s·g with Σ = 1 - ᾱ_t / ᾱ_t' of this step
            alpha_bar = (alpha / norm) ** 2
            if next_timestep is None:
                next_alpha_bar = torch.ones_like(alpha_bar)
            else:
                next_alpha, next_sigma = (
                    level.to(latents.device) for level in noise_level(self.scheduler, next_timestep)
                )
                next_alpha_bar = (next_alpha / torch.hypot(next_alpha, next_sigma)) ** 2
            variance = (1 - alpha_bar / next_alpha_bar).clamp(min=0)
            g = g + gradient(crops + variance * g, {"malignancy"})

        full = torch.zeros(latents.shape, dtype=g.dtype, device=latents.device)
        for image, (y0, x0, y1, x1), nodule in zip(nodules.image, nodules.box, g / norm, strict=True):
            full[image, :, y0:y1, x0:x1] += nodule
        return full

    @torch.no_grad()
    def __call__(
        self,
        semantic_map,
        nodule_features=None,
        num_inference_steps: int = 50,
        guidance_scale: float | dict[str, float] = 1.0,
        guidance_order: str = "sequential",
        eta: float = 0.0,
        num_images_per_map: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - diffusers' own signature
    ) -> LSDMPipelineOutput | tuple:
        """Generate `num_images_per_map` slices of each map.

        Args:
            semantic_map: PIL image ("L" or "P"), array, tensor or PNG path of one map (H, W), a batch (B, H, W), or a list of them;
                integer labels 0..7, H and W multiples of what autoencoder and U-Net together halve.
            nodule_features: None (no guidance), a dict for every nodule of every map, or a list with one entry per map, each a dict
                or a list of dicts, one per nodule in the order of `find_nodules`. Keys: malignancy ("benign", "malignant" or 1..5),
                lobulation, spiculation, texture (1..5).
            num_inference_steps: denoising steps.
            guidance_scale: s, one number or one per feature. 0 is exactly the unguided sample, 1 is Bayes' rule.
            guidance_order: "sequential" (malignancy last, on the latent the others have guided; the thesis' order), or "joint".
            eta: η of DDIM and TCD, in [0, 1]; other schedulers ignore it.
            num_images_per_map: images of each map; they share one modulation.
            generator: one generator, or a list with one per image.
            latents: starting noise, (images, c, H / f, W / f), instead of noise from `generator`.
            output_type: "pil" (mode L), "np" or "pt" in [0, 1], "hu" (int16), "latent".
            return_dict: whether to return `LSDMPipelineOutput` or a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, kwargs)` after each step; may return changed tensors.
            callback_on_step_end_tensor_inputs: names of the tensors handed to the callback: "latents".

        Raises:
            ValueError: for a bad argument, which is named, before any work is done.
            RuntimeError: where guidance cannot have gradients: `torch.inference_mode`, sequential offload.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._check_inputs(
            guidance_scale,
            guidance_order,
            num_images_per_map,
            num_inference_steps,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        maps = self._read_maps(
            semantic_map, self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        )
        device = self._execution_device
        batch_size = len(maps) * num_images_per_map
        latent_size = (maps.shape[1] // self.vae_scale_factor, maps.shape[2] // self.vae_scale_factor)
        shape = (batch_size, self.vae.config.latent_channels, *latent_size)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` is a list of {len(generator)}, but the call makes {batch_size} images.")
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}, but {shape} is needed.")
        self._guidance_scale = guidance_scale
        nodules = self._nodule_batch(maps, nodule_features, num_images_per_map, latent_size, device)
        scales = self._scales()
        if nodules is not None and not any(
            scales[feature] and not target.isnan().all() for feature, target in nodules.targets.items()
        ):
            nodules = None  # scale 0 of every feature asked for is exactly no guidance
        if nodules is not None:
            self._check_guidable()

        # noise, in float32 whatever the models' dtype is: a scheduler's arithmetic on bfloat16 latents loses the small steps
        dtype = torch.float32
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device=device, dtype=dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)

        # what the map gives, once: E(m) of the map scaled to [-1, 1], and γ, β of every SPADE layer
        labels = torch.from_numpy(maps).to(device)
        scaled = labels[:, None].to(self.vae.dtype) * (2 / (NUM_LABELS - 1)) - 1
        map_latents = (
            torch.cat([self.vae.encode(m[None]).latent_dist.mode() for m in scaled]) * self.vae.config.scaling_factor
        )
        map_latents = map_latents.repeat_interleave(num_images_per_map, dim=0).to(self.unet.dtype)
        modulation = (
            () if self.unet.config.spade_blocks == "none" else self.unet.compute_modulation(labels.long(), latent_size)
        )

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        step_arguments = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in step_arguments}
        prediction_type = getattr(self.scheduler.config, "prediction_type", "flow_prediction")

        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                model_input = (
                    self.scheduler.scale_model_input(latents, t)
                    if hasattr(self.scheduler, "scale_model_input")
                    else latents
                )
                model_input = torch.cat([model_input.to(self.unet.dtype), map_latents], dim=1)
                model_output = self.unet(model_input, t, modulation=modulation).sample.to(dtype)
                if nodules is not None:
                    next_t = timesteps[i + 1] if i + 1 < len(timesteps) else None
                    gradient = self._guidance(latents, t, next_t, nodules, guidance_order)
                    alpha, sigma = (level.to(device) for level in noise_level(self.scheduler, t))
                    model_output = guide_model_output(model_output, gradient, alpha, sigma, prediction_type)
                latents = self.scheduler.step(model_output, t, latents, **extra).prev_sample
                if callback_on_step_end is not None:
                    callback_kwargs = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                    latents = callback_on_step_end(self, i, t, callback_kwargs).pop("latents", latents)
                order = getattr(self.scheduler, "order", 1)
                if (i == len(timesteps) - 1 or (i + 1) % order == 0) and progress_bar.n < num_inference_steps:
                    progress_bar.update()
        del modulation, map_latents  # the modulation of a 512x512 map is hundreds of MB at full size

        if output_type == "latent":
            images = latents
        else:
            # one at a time: a decoded batch of full slices is the peak of memory, and an image must not depend on its neighbours
            pixels = torch.cat([self._decode_pixels(z[None]).float().cpu() for z in latents]).clamp(-1, 1)
            images = self._postprocess(pixels, output_type)
        self.maybe_free_model_hooks()
        return LSDMPipelineOutput(images=images) if return_dict else (images,)
