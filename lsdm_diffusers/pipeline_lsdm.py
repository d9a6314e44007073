"""LSDMGuidedPipeline: semantic map in, CT slice out, nodules guided by gradients of classifiers (thesis, Alg. 2)."""

import copy
import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor

from .ct_noise import CTNoise, add_grain_to_pixels, check_grain
from .guidance import frozen, noise_levels
from .guidance_methods.choice import check_methods, check_requests, choose_methods
from .guidance_methods.classifier import ClassifierGuidance, GradientHook, check_noise_levels
from .guidance_methods.classifier_free import RatingGuidance, asked_groups, paint_unknown, rating_variants
from .guidance_methods.contrast import LabelContrast, paint_asked, paint_opposite
from .guidance_methods.map_variants import MapVariant, MapVariants
from .guidance_methods.outline import draw_outlines
from .guidance_methods.step import GuidanceMethod, GuidedStep
from .latents import decode_latents, encode_map
from .models.group_norm import NormStatistics, recorded_norms
from .models.nodule_classifier import NoduleClassifier
from .models.unet_spade import SpadeUNet2DModel
from .nodule_batch import NoduleFeatures, NoduleRequest, batch_nodules, narrow_requests, requested_nodules
from .nodule_features import NODULE_FEATURES
from .sampling_defaults import CLASSIFIER, CLASSIFIER_FREE, CONTRAST, OUTLINE, recommended_scales
from .scheduler_checks import check_scheduler, draws_noise, schedule_arguments, trained_prediction, try_scheduler
from .semantic_map_pipeline import (
    HUB_ARGUMENTS,
    PIXEL_OUTPUT_TYPES,
    LSDMPipelineOutput,
    MapSources,
    SemanticMapPipeline,
)
from .volume_noise import features_of_slices, noise_correlation, separate_generator, volume_noise

DEFAULT_SCALE = 1.0  # Bayes' rule
OUTPUT_TYPES = (*PIXEL_OUTPUT_TYPES, "latent")


class LSDMGuidedPipeline(SemanticMapPipeline):
    r"""
    Generates lung CT slices from semantic maps, with nodules as benign or malignant, smooth or spiculated as asked.

    Args:
        vae: autoencoder of CT slices, one channel; its `scaling_factor` is 1 / std of the training latents.
        unet: denoiser of the latents.
        scheduler: any diffusers scheduler that does not clip its sample.
        malignancy_classifier, lobulation_classifier, spiculation_classifier, texture_classifier: optional; each
            feature that classifiers guide needs its own.
        guidance_methods: {feature: method} that the checkpoint recommends, "classifier", "contrast",
            "classifier_free" or "outline"; saved with it. Features that it does not name, and checkpoints without it,
            use "classifier".
        ct_noise: what `training/measure_ct_noise.py` measured, for `grain=` of a call; saved with the checkpoint.

    Attributes:
        gradient_hook: function that exchanges the classifiers' gradient of each step, or None. It is called as
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
        guidance_methods: dict[str, str] | None = None,
        ct_noise: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__()
        if ct_noise is not None:
            CTNoise.from_config(ct_noise)  # raises where it is none
        check_methods({} if guidance_methods is None else guidance_methods, "guidance_methods")
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            malignancy_classifier=malignancy_classifier,
            lobulation_classifier=lobulation_classifier,
            spiculation_classifier=spiculation_classifier,
            texture_classifier=texture_classifier,
        )
        self.register_to_config(guidance_methods=guidance_methods, ct_noise=ct_noise)
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

    def recommended_methods(self, guidance_method: str | Mapping[str, str] | None = None) -> dict[str, str]:
        """The method that guides each feature where a call is given this `guidance_method`.

        Returns:
            {feature: "classifier", "contrast" or "classifier_free"}, of every feature.

        Raises:
            ValueError: for an unknown name or feature, or a method that cannot guide the feature.
        """
        return choose_methods(guidance_method, self.config.get("guidance_methods"))

    def recommended_scales(self, guidance_method: str | Mapping[str, str] | None = None) -> dict[str, float]:
        """The `guidance_scale` that suits the methods of a call with this `guidance_method`: {feature: s}."""
        return recommended_scales(self.recommended_methods(guidance_method))

    def _requests(
        self, maps: np.ndarray, nodule_features: NoduleFeatures | None, methods: Mapping[str, str]
    ) -> list[NoduleRequest]:
        """What nodules are asked for, checked; warn where the call asks for guidance that does nothing."""
        if nodule_features is not None:
            requests = requested_nodules(maps, nodule_features)
            check_requests(requests, methods, self.classifiers, self.unet.config.rating_channels)
            return requests
        if not {0.0, DEFAULT_SCALE}.issuperset(self._feature_scales().values()):
            warnings.warn(
                f"`guidance_scale` is {self._guidance_scale}, but there are no `nodule_features`, so nothing is "
                "guided.",
                stacklevel=4,  # the line that calls the pipeline, past `__call__` and `torch.no_grad`
            )
        return []

    def _requests_by_method(
        self, requests: Sequence[NoduleRequest], methods: Mapping[str, str]
    ) -> dict[str, list[NoduleRequest]]:
        """The requests of each method that guides. Scale 0 of all that it is asked for is exactly no guidance."""
        scales = self._feature_scales()
        by_method = {}
        for method in (CLASSIFIER, CONTRAST, CLASSIFIER_FREE):  # an outline is drawn before
            narrowed = narrow_requests(requests, [feature for feature in methods if methods[feature] == method])
            if any(scales[feature] for request in narrowed for feature in request.features):
                by_method[method] = narrowed
        return by_method

    def _guidance(
        self,
        by_method: Mapping[str, Sequence[NoduleRequest]],
        maps: np.ndarray,
        shape: tuple[int, ...],
        prediction_type: str,
        order: str,
    ) -> list[GuidanceMethod]:
        """The methods that guide a call, with all that no step changes; they act one after the other.

        Args:
            by_method: what each method is asked for.
            maps: (B, H, W), as `_painted_maps` makes them.
            shape: of the latents.
            prediction_type: what the model predicts.
            order: of the classifiers' gradients.
        """
        device, images_per_map = self._execution_device, shape[0] // len(maps)
        methods: list[GuidanceMethod] = []
        if CLASSIFIER in by_method:
            size = (maps.shape[1], maps.shape[2])
            nodules = batch_nodules(by_method[CLASSIFIER], size, images_per_map, self.vae_scale_factor, device)
            methods.append(
                ClassifierGuidance(
                    nodules,
                    self.classifiers,
                    self.vae,
                    self.scheduler,
                    prediction_type,
                    order,
                    shape,
                    self.gradient_hook,
                )
            )
        if CONTRAST in by_method:
            opposite = torch.from_numpy(paint_opposite(maps, by_method[CONTRAST])).to(device)
            variants = [MapVariant(opposite, None, by_method[CONTRAST])]
            methods.append(LabelContrast(MapVariants(self.unet, self.vae, variants, images_per_map)))
        if CLASSIFIER_FREE in by_method:
            requests = by_method[CLASSIFIER_FREE]
            check_noise_levels(self.scheduler)
            alphas, sigmas = noise_levels(self.scheduler, self.scheduler.timesteps)
            rated = list(rating_variants(maps, requests, device).values())
            rated_variants = MapVariants(self.unet, self.vae, rated, images_per_map)
            methods.append(RatingGuidance(asked_groups(requests), rated_variants, (sigmas / alphas).tolist()))
        return methods

    def _draw_outlines(
        self, maps: np.ndarray, requests: list[NoduleRequest], methods: Mapping[str, str]
    ) -> tuple[np.ndarray, list[NoduleRequest]]:
        """Maps whose nodules have the outlines that they are asked for, and the requests with these nodules."""
        scales = self._feature_scales()
        features = [feature for feature in methods if methods[feature] == OUTLINE and scales[feature]]
        return draw_outlines(maps, requests, features) if features else (maps, requests)

    def _painted_maps(self, maps: np.ndarray, by_method: Mapping[str, Sequence[NoduleRequest]]) -> np.ndarray:
        """The maps that are sampled: nodules guided by contrast get the label that they are asked for."""
        maps = paint_asked(maps, by_method.get(CONTRAST, []))
        return paint_unknown(maps, by_method.get(CLASSIFIER_FREE, []))

    def _feature_scales(self) -> dict[str, float]:
        scale = self._guidance_scale
        if isinstance(scale, Mapping):
            return {feature: float(scale.get(feature, DEFAULT_SCALE)) for feature in NODULE_FEATURES}
        return dict.fromkeys(NODULE_FEATURES, float(scale))

    def _denoise(
        self,
        call: "LSDMGuidedPipeline",
        steps: torch.Tensor,
        num_inference_steps: int,
        latents: torch.Tensor,
        maps: np.ndarray,
        guidance: Sequence[GuidanceMethod],
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
        after_step: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
        first_index: int = 0,
    ) -> torch.Tensor:
        """Take the steps of a call from noisy latents (thesis, Alg. 2).

        Args:
            call: this pipeline with the state of the call.
            steps: the timesteps.
            num_inference_steps: what the progress bar counts; schedulers of second order take two timesteps a step.
            latents: (B, c, h, w), float32, at the noise level of the first step, scaled as the scheduler has them.
            maps: labels, (M, H, W); each has B / M images.
            guidance: methods that act one after the other.
            eta: η of DDIM and TCD.
            generator: of schedulers that draw noise.
            after_step: called with step, timestep and latents after each step; returns the latents to go on with.
            first_index: of the first step in the scheduler's timesteps.
        """
        step_arguments = inspect.signature(call.scheduler.step).parameters
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in step_arguments}

        # What the map gives, once: E(m), and γ, β of every SPADE layer.
        labels = torch.from_numpy(maps).to(latents.device)
        map_latents = encode_map(self.vae, labels)
        map_latents = map_latents.repeat_interleave(len(latents) // len(maps), dim=0).to(self.unet.dtype)
        # the modulation of a 512x512 map is hundreds of MB at full size; it is freed with this call
        modulation: tuple[Any, ...] = ()
        if self.unet.config.spade_blocks != "none":
            modulation = self.unet.compute_modulation(labels.long(), tuple(latents.shape[-2:]))

        modules = [module for method in guidance for module in method.modules]
        with frozen(*modules), self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(steps):
                if call._interrupt or self._interrupt:
                    break
                model_input = latents
                if hasattr(call.scheduler, "scale_model_input"):
                    model_input = call.scheduler.scale_model_input(latents, t)
                model_input = model_input.to(self.unet.dtype)
                recording: AbstractContextManager[NormStatistics] = recorded_norms() if guidance else nullcontext({})
                with recording as norms:
                    output = self.unet(torch.cat([model_input, map_latents], dim=1), t, modulation=modulation)
                model_output = output.sample.to(latents.dtype)
                step = GuidedStep(
                    first_index + i, t, latents, model_input, model_output, norms, call._feature_scales()
                )
                for guide in guidance:
                    model_output = guide(model_output, step)
                latents = call.scheduler.step(model_output, t, latents, **extra).prev_sample
                latents = after_step(i, t, latents)
                order = getattr(call.scheduler, "order", 1)
                is_whole_step = i == len(steps) - 1 or (i + 1) % order == 0
                if is_whole_step and progress_bar.n < num_inference_steps:
                    progress_bar.update()
        self._guidance_scale, self._num_timesteps = call._guidance_scale, call._num_timesteps
        return latents

    def _check_volume(
        self, slice_spacing_mm: float | None, generator: Any, num_inference_steps: int, eta: float
    ) -> float:
        """The correlation of neighbours' noise; ValueError where a volume cannot be drawn."""
        if slice_spacing_mm is None:
            raise ValueError("`volume` is True, but `slice_spacing_mm` is missing.")
        correlation = noise_correlation(slice_spacing_mm)
        if isinstance(generator, list):
            raise ValueError("`generator` is a list, but a volume takes one, of which its noise comes slice by slice.")
        if draws_noise(self.scheduler, num_inference_steps, eta):
            raise ValueError(
                f"`scheduler` is {type(self.scheduler).__name__} with `eta` {eta}, but a volume needs one that draws "
                "no noise, such as DPMSolverMultistepScheduler, so that neighbouring slices agree."
            )
        return correlation

    def _sample_volume(
        self,
        semantic_map: MapSources,
        nodule_features: NoduleFeatures | None,
        slice_spacing_mm: float | None,
        num_images_per_map: int,
        generator: Any,
        latents: torch.Tensor | None,
        return_dict: bool,
        **call_arguments: Any,
    ) -> LSDMPipelineOutput | tuple[Any, ...]:
        """`__call__` slice by slice, with noise that changes slowly along z."""
        if num_images_per_map != 1 or latents is not None:
            raise ValueError("`volume` is True; it takes `num_images_per_map` 1, and no `latents`.")
        eta, steps = call_arguments["eta"], call_arguments["num_inference_steps"]
        correlation = self._check_volume(slice_spacing_mm, generator, steps, eta)
        maps = self._read_maps(semantic_map, self.vae_scale_factor)
        wishes = features_of_slices(maps, nodule_features)
        size = (maps.shape[1] // self.vae_scale_factor, maps.shape[2] // self.vae_scale_factor)
        shape = (1, self.vae.config.latent_channels, *size)
        noises = volume_noise(len(maps), shape, correlation, generator, self._execution_device)
        grain_generator = separate_generator(generator)
        images: list[Any] = []
        drawn = []
        for labels, wish, noise in zip(maps, wishes, noises, strict=True):
            features = None if wish is None else [wish]
            arguments = dict(call_arguments)
            if features is None and nodule_features is not None:  # no nodule in this slice
                arguments["guidance_scale"] = DEFAULT_SCALE
            output: Any = self(labels, features, latents=noise, generator=grain_generator, **arguments)
            images += list(output.images)
            drawn.append(output.semantic_maps)
        stack: Any = images
        if call_arguments["output_type"] in ("np", "hu"):
            stack = np.stack(images)
        elif call_arguments["output_type"] != "pil":
            stack = torch.stack(images)
        result = LSDMPipelineOutput(images=stack, semantic_maps=np.concatenate(drawn))
        return result if return_dict else result.to_tuple()

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
        guidance_method: str | Mapping[str, str] | None = None,
        grain: float = 0.0,
        volume: bool = False,
        slice_spacing_mm: float | None = None,
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
            guidance_method: "classifier" (gradients of the classifiers), "contrast" (malignancy alone: the difference
                that the nodule's label makes; nodules are drawn with the asked label), "outline" (lobulation and
                spiculation alone: nodules are drawn with the outline of `reshape_nodule`) or "classifier_free" (needs
                a U-Net with rating channels), for all features or as {feature: name}. None, and features that the
                dict does not name: what the checkpoint recommends. With scale 0, each method gives the slice of the
                map as it is given, so that asked labels and outlines are not drawn either.
            grain: CT noise that is added to the finished slice: 0 none, 1 as much as real slices have, more is like a
                lower dose. Its level is drawn for each slice. It needs a checkpoint with `ct_noise`.
            volume: whether the maps (Z, H, W) are neighbouring slices of a volume. Their noise then changes slowly
                along z, so that neighbours agree; a deterministic scheduler is needed. They are made one after the
                other, whatever their number. `nodule_features` is a dict, or a list with a dict for each nodule of
                the volume; `generator` is one, and grain is independent between slices.
            slice_spacing_mm: distance of neighbouring slices of a volume, in mm.

        Warns:
            UserWarning: for guidance that does nothing: a scale without features, or features on a map without
                nodules; and for a nodule that is too small for an outline, or has no room for it.

        Raises:
            ValueError: for a bad argument, which is named, before any work is done.
            RuntimeError: for guidance under `torch.inference_mode` or with sequential offload.
        """
        if volume:
            return self._sample_volume(
                semantic_map,
                nodule_features,
                slice_spacing_mm,
                num_images_per_map,
                generator,
                latents,
                return_dict,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_order=guidance_order,
                eta=eta,
                output_type=output_type,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
                timesteps=timesteps,
                sigmas=sigmas,
                guidance_method=guidance_method,
                grain=grain,
            )
        if slice_spacing_mm is not None:
            raise ValueError(f"`slice_spacing_mm` is {slice_spacing_mm}, but it is for `volume=True` alone.")
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._check_inputs(guidance_scale, guidance_order, output_type, callback_on_step_end_tensor_inputs)
        check_grain(grain, self.config.get("ct_noise"))
        if grain and output_type == "latent":
            raise ValueError(f"`grain` is {grain}, but latents have none; use another `output_type`.")
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
        prediction_type = check_scheduler(self.scheduler, self._trained_prediction)
        schedule = schedule_arguments(self.scheduler, num_inference_steps, timesteps, sigmas)

        try_scheduler(self.scheduler, schedule, self.vae.config.latent_channels, device)
        self._interrupt = False
        call = self._new_call(guidance_scale, schedule, device)
        methods = self.recommended_methods(guidance_method)
        requests = call._requests(maps, nodule_features, methods)
        maps, requests = call._draw_outlines(maps, requests, methods)
        by_method = call._requests_by_method(requests, methods)
        maps = call._painted_maps(maps, by_method)

        # Noise, in float32 whatever the models' dtype is: a scheduler's arithmetic in bfloat16 loses small steps.
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device=device, dtype=torch.float32) * getattr(call.scheduler, "init_noise_sigma", 1.0)

        def after_step(i: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            if callback_on_step_end is None:
                return latents
            callback_kwargs = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
            changed: torch.Tensor = callback_on_step_end(call, i, t, callback_kwargs).pop("latents", latents)
            return changed

        guidance = call._guidance(by_method, maps, shape, prediction_type, guidance_order)
        steps = call.scheduler.timesteps
        num_inference_steps = schedule.get("num_inference_steps", len(steps))
        latents = self._denoise(call, steps, num_inference_steps, latents, maps, guidance, eta, generator, after_step)
        del guidance  # it holds modulations of further maps

        images: Any = latents
        if output_type != "latent":
            # One at a time: a decoded batch of full slices is the peak of memory, and an image must not depend on its
            # neighbours.
            pixels = torch.cat([decode_latents(self.vae, z[None]).float().cpu() for z in latents]).clamp(-1, 1)
            if grain:
                noise = CTNoise.from_config(self.config.ct_noise)
                pixels = add_grain_to_pixels(pixels, torch.from_numpy(maps), noise, grain, generator)
            images = self._postprocess(pixels, output_type)
        self.maybe_free_model_hooks()
        output = LSDMPipelineOutput(images=images, semantic_maps=maps)
        return output if return_dict else output.to_tuple()
