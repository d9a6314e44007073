"""LSDMInpaintPipeline: a real CT slice and a mask in, the same slice with the masked part drawn anew out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from scipy.ndimage import binary_dilation, distance_transform_edt

from .ct_noise import CTNoise, add_grain, check_grain, relative_level
from .guidance import noise_levels
from .guidance_methods.step import GuidanceMethod
from .hounsfield import HU_MAX, HU_MIN, hu_from_scaled, scaled_hu
from .labels import SemanticLabel
from .latents import decode_latents, encode_pixels
from .nodule_batch import NoduleFeatures, NoduleRequest
from .nodule_crop import square_window
from .outside_body import blanked
from .pipeline_lsdm import DEFAULT_SCALE, LSDMGuidedPipeline
from .scheduler_checks import check_scheduler, schedule_arguments, try_scheduler
from .segmentation import semantic_map_from_hu
from .semantic_map import Nodule, find_nodules, read_semantic_map
from .volume_noise import separate_generator, volume_noise

WINDOW = 256  # pixels; the U-Net works in this window around the mask
MARGIN = 32  # pixels of known tissue on each side of the mask that the window holds at least
DILATION = 2  # pixels by which a nodule is dilated to a mask; lung next to an inserted nodule brightens
MIN_HU_SPAN = 300  # from air to soft tissue; less is no slice in HU
OUTPUT_TYPES = ("hu", "pil", "np", "pt")


@dataclass
class LSDMInpaintOutput(BaseOutput):
    """Edited slices.

    Args:
        images: slices (B, H, W) in HU, of the dtype of the given ones ("hu"), or as `LSDMPipelineOutput` has them.
        semantic_maps: labels 0..7, (B, H, W), uint8: the maps of the edited slices.
        masks: boolean (B, H, W); outside, "hu" is the given slice to the bit.
    """

    images: Any
    semantic_maps: np.ndarray
    masks: np.ndarray


def feather_weights(mask: np.ndarray, feather: int) -> np.ndarray:
    """How much of an edited slice is pasted: 0 outside the mask, rising inside over `feather` pixels to 1, (H, W)."""
    return np.asarray(np.clip(distance_transform_edt(mask) / (feather + 1), 0, 1))


def dilated_mask(mask: np.ndarray) -> np.ndarray:
    """A boolean mask (H, W), dilated by `DILATION` pixels."""
    disc = np.hypot(*np.mgrid[-DILATION : DILATION + 1, -DILATION : DILATION + 1]) <= DILATION
    return np.asarray(binary_dilation(mask, structure=disc))


def dilated_mask_of_nodules(maps: np.ndarray) -> np.ndarray:
    """Where the nodules of maps (B, H, W) are, dilated by `DILATION` pixels."""
    return np.stack([dilated_mask(labels >= SemanticLabel.NODULE_BENIGN) for labels in maps])


def edit_window(mask: np.ndarray, edge: int, multiple: int) -> tuple[slice, slice]:
    """The square window around a mask that the models see, as an index.

    Args:
        mask: boolean (H, W), not empty.
        edge: wished edge in pixels; more is taken where the mask with its margin needs more.
        multiple: of the window's edge.

    Raises:
        ValueError: for a mask whose window would leave the slice.
    """
    rows, columns = np.nonzero(mask)
    extent = max(np.ptp(rows), np.ptp(columns)) + 1 + 2 * MARGIN
    needed = max(edge, -(-extent // multiple) * multiple)
    largest = min(mask.shape) // multiple * multiple
    if extent - 2 * MARGIN > largest:
        raise ValueError(
            f"`mask_image` spans {extent - 2 * MARGIN} pixels, but in a slice of {mask.shape[0]}x{mask.shape[1]} at "
            f"most {largest} can be drawn anew."
        )
    centre = ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2)
    y0, x0, y1, x1 = square_window(centre, mask.shape, min(needed, largest))
    return slice(y0, y1), slice(x0, x1)


class _Edit(NamedTuple):
    """What is drawn in one slice."""

    call: LSDMGuidedPipeline  # the pipeline with the state of the call
    place: tuple[slice, slice]  # the window in the slice
    mask: np.ndarray  # boolean, of the window
    drawn: np.ndarray  # the map that is sampled, (1, h, w)
    by_method: dict[str, list[NoduleRequest]]  # what each method is asked for


class LSDMInpaintPipeline(LSDMGuidedPipeline):
    r"""
    Edits real CT slices: draws the part inside a mask anew, from a semantic map into which the edit is painted.

    It has the components and configuration of `LSDMGuidedPipeline`, and loads its checkpoints.

    Example:
        >>> from lsdm_diffusers import LSDMInpaintPipeline, small_checkpoint
        >>> pipe = LSDMInpaintPipeline.from_pretrained(small_checkpoint())  # doctest: +SKIP
        >>> edited = pipe(hu, semantic_map=map_with_a_nodule).images[0]  # doctest: +SKIP
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override] # in-painting takes an image first, as in diffusers
        self,
        image: np.ndarray | torch.Tensor | Sequence[np.ndarray],
        mask_image: Any = None,
        semantic_map: Any = None,
        nodule_features: NoduleFeatures | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 25,
        guidance_scale: float | Mapping[str, float] = DEFAULT_SCALE,
        guidance_order: str = "sequential",
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "hu",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - diffusers' signature
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_method: str | Mapping[str, str] | None = None,
        grain: float | None = None,
        feather: int = DILATION,
        window: int = WINDOW,
        pixel_spacing: float = 0.7,
        volume: bool = False,
        slice_spacing_mm: float | None = None,
    ) -> LSDMInpaintOutput | tuple[Any, ...]:
        """Edit slices, each inside its mask.

        Args:
            image: one slice (H, W) in Hounsfield units or a batch (B, H, W); whole numbers or floats.
            mask_image: where it may change, boolean or 0 and 1, of the shape of `image`; an outline that leaves it is
                cut. None takes the nodules of the map, dilated by 2 pixels, and what their asked outlines need.
            semantic_map: labels 0..7 of the shape of `image`, the edit painted in: a nodule to insert, lung where one
                is to vanish. None makes it from the image, which knows no nodules.
            nodule_features: as in `LSDMGuidedPipeline`, of the nodules that the mask touches: a dict, or a list with
                an entry for each slice.
            strength: 1 draws anew from noise alone; less, above 0, keeps structure of what was there.
            num_inference_steps: denoising steps at strength 1.
            guidance_scale, guidance_order, eta, timesteps, sigmas, guidance_method: as in `LSDMGuidedPipeline`.
            generator: one generator, or a list with one per slice.
            output_type: "hu" (the dtype of `image`; outside the mask the given values to the bit), "pil", "np", "pt".
            return_dict: whether to return `LSDMInpaintOutput` or a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in `LSDMGuidedPipeline`; the latents are those
                of the window.
            grain: CT noise of the edited part: 0 none, 1 that of the checkpoint's scanners. None measures the level
                around the mask; without `ct_noise` of the checkpoint there is none.
            feather: pixels inside the mask over which old and new are blended.
            window: edge in pixels of the part that the models see around the mask, a multiple of 32.
            pixel_spacing: edge of a pixel in mm, for a map made from the image.
            volume: whether the slices (Z, H, W) are neighbours. Then one window serves all, their noise changes slowly
                along z, slices without mask stay as they are, and `nodule_features` is one dict. It needs one
                `generator` and a scheduler that draws no noise.
            slice_spacing_mm: distance of neighbouring slices of a volume, in mm.

        Raises:
            ValueError: for a bad argument, which is named, before any work is done.
        """
        slices, as_dtype = _read_slices(image)
        masks_given = None if mask_image is None else _read_masks(mask_image, slices.shape)
        maps = _read_maps(semantic_map, slices, pixel_spacing)
        self._check_inputs(guidance_scale, guidance_order, output_type, callback_on_step_end_tensor_inputs)
        self._check_output_type(output_type, OUTPUT_TYPES)
        self._check_count("num_inference_steps", num_inference_steps)
        self._check_generators(generator, len(slices))
        if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
            raise ValueError(f"`strength` is {strength!r}, but a number above 0 and up to 1 is needed.")
        if not isinstance(feather, int) or feather < 0:
            raise ValueError(f"`feather` is {feather!r}, but a whole number of at least 0 is needed.")
        if grain is not None:
            check_grain(grain, self.config.get("ct_noise"))
        multiple = self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if not isinstance(window, int) or window < multiple or window % multiple:
            raise ValueError(f"`window` is {window!r}, but a multiple of {multiple} is needed.")
        prediction_type = check_scheduler(self.scheduler, self._trained_prediction)
        schedule = schedule_arguments(self.scheduler, num_inference_steps, timesteps, sigmas)
        device = self._execution_device
        try_scheduler(self.scheduler, schedule, self.vae.config.latent_channels, device)
        correlation = None
        if volume:
            correlation = self._check_volume(slice_spacing_mm, generator, num_inference_steps, eta)
        elif slice_spacing_mm is not None:
            raise ValueError(f"`slice_spacing_mm` is {slice_spacing_mm}, but it is for `volume=True` alone.")
        features = _features_by_slice(nodule_features, len(slices), volume)
        methods = self.recommended_methods(guidance_method)
        self._interrupt = False

        # all that can be wrong, before anything is drawn
        touched = dilated_mask_of_nodules(maps) if masks_given is None else masks_given
        _check_touched(touched, masks_given is None, volume)
        shared = edit_window(np.asarray(touched.any(0)), window, multiple) if volume else None
        edits: dict[int, _Edit] = {}
        for index in np.flatnonzero(touched.any((1, 2))).tolist():
            call = self._new_call(guidance_scale, schedule, device)
            place = edit_window(touched[index], window, multiple) if shared is None else shared
            widens = masks_given is None
            edits[index] = call._plan_edit(maps[index], touched[index], place, features[index], methods, widens)

        generators = generator if isinstance(generator, list) else [generator] * len(slices)
        fixed_noise = {} if correlation is None else self._noise_of_volume(edits, correlation, generator, device)
        if volume:
            generators = [separate_generator(generators[0])] * len(slices)
        edited, edited_maps, masks = slices.copy(), maps.copy(), np.zeros(slices.shape, dtype=bool)
        noise = CTNoise.from_config(self.config.ct_noise) if self.config.get("ct_noise") else None
        for index, edit in edits.items():
            place, mask, drawn, own_generator = edit.place, edit.mask, edit.drawn, generators[index]
            hu, labels = slices[index][place], maps[index][place]
            seen = np.clip(blanked(slices[index], maps[index])[place], HU_MIN, HU_MAX).astype(np.float32)
            pixels = torch.from_numpy(scaled_hu(seen))[None, None].to(device, self.vae.dtype)
            known = encode_pixels(self.vae, pixels).float()
            fresh = fixed_noise.get(index)
            if fresh is None:
                fresh = randn_tensor(known.shape, generator=own_generator, device=device, dtype=known.dtype)
            latents = self._draw_latents(
                edit.call,
                known,
                fresh,
                mask,
                drawn,
                edit.call._guidance(edit.by_method, drawn, tuple(known.shape), prediction_type, guidance_order),
                strength,
                eta,
                own_generator,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
            )
            new = self._decode_hu(latents)
            if noise is not None and grain != 0:
                level = relative_level(noise, seen - self._decode_hu(known).numpy(), labels) if grain is None else None
                amount = 1.0 if grain is None else grain
                new = add_grain(new, torch.from_numpy(drawn[0]), noise, amount, own_generator, level)
            blended = hu + feather_weights(mask, feather) * (new.numpy() - hu)
            edited[index][place] = np.where(mask, as_dtype(blended), hu)
            edited_maps[index][place], masks[index][place] = np.where(mask, drawn[0], labels), mask
        images: Any = edited
        if output_type != "hu":
            clipped = np.clip(edited.astype(np.float32), HU_MIN, HU_MAX)
            images = self._postprocess(scaled_hu(torch.from_numpy(clipped))[:, None], output_type)
        self.maybe_free_model_hooks()
        output = LSDMInpaintOutput(images=images, semantic_maps=edited_maps, masks=masks)
        return output if return_dict else output.to_tuple()

    def _plan_edit(
        self,
        labels: np.ndarray,
        touched: np.ndarray,
        place: tuple[slice, slice],
        features: Any,
        methods: Mapping[str, str],
        widens: bool,
    ) -> "_Edit":
        """What is drawn in a slice; called on the pipeline with the state of the slice's own call.

        Args:
            labels: its map, (H, W).
            touched: where it may change, boolean (H, W), not empty.
            place: the window in the slice.
            features: what the nodules that the mask touches are asked for.
            methods: of guidance, by feature.
            widens: whether the mask grows by what the outlines of asked features need.
        """
        labels, touched = labels[place], touched[place]
        asked = _features_in_window(features, find_nodules(labels), touched)
        requests = self._requests(labels[None], None if asked is None else [asked], methods)
        drawn, requests = self._draw_outlines(labels[None], requests, methods)
        by_method = self._requests_by_method(requests, methods)
        drawn = self._painted_maps(drawn, by_method)
        if widens:
            touched = touched | dilated_mask(drawn[0] != labels)
        return _Edit(self, place, touched, drawn, by_method)

    def _noise_of_volume(
        self, edits: Mapping[int, "_Edit"], correlation: float, generator: Any, device: torch.device
    ) -> dict[int, torch.Tensor]:
        """The noise of each edited slice of a volume, of which all windows are the same."""
        first, last = min(edits), max(edits)
        rows, columns = edits[first].place
        size = (
            (rows.stop - rows.start) // self.vae_scale_factor,
            (columns.stop - columns.start) // self.vae_scale_factor,
        )
        shape = (1, self.vae.config.latent_channels, *size)
        noises = volume_noise(last - first + 1, shape, correlation, generator, device)
        return {index: noise for index, noise in enumerate(noises, start=first) if index in edits}

    def _decode_hu(self, latents: torch.Tensor) -> torch.Tensor:
        """D(z) of one window in HU, (H, W), float32, on the CPU, in the range of the models."""
        return hu_from_scaled(decode_latents(self.vae, latents)[0, 0].float().cpu().clamp(-1, 1))

    def _draw_latents(
        self,
        call: LSDMGuidedPipeline,
        known: torch.Tensor,
        noise: torch.Tensor,
        mask: np.ndarray,
        maps: np.ndarray,
        guidance: Sequence[GuidanceMethod],
        strength: float,
        eta: float,
        generator: torch.Generator | None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None,
        tensor_inputs: Sequence[str],
    ) -> torch.Tensor:
        """Draw the masked latents of a window anew; the others are put back at every step, at its noise level.

        Args:
            call: this pipeline with the state of the call.
            known: E(x), (1, c, h, w), float32.
            noise: standard normal, of the shape of `known`.
            mask: boolean (H, W); a latent is drawn anew if a pixel of its cell is.
            maps: labels (1, H, W).
            guidance: methods that guide the call.
            strength: share of the steps that are taken, above 0 and up to 1.
            eta: η of DDIM and TCD.
            generator: of the noise.
            callback_on_step_end: as in the call.
            tensor_inputs: what it is given.

        Returns:
            (1, c, h, w); outside the masked latents, `known`.
        """
        timesteps, order = call.scheduler.timesteps, getattr(call.scheduler, "order", 1)
        alphas, sigmas = noise_levels(call.scheduler, timesteps)
        skipped = (len(timesteps) - max(1, round(len(timesteps) * strength))) // order * order
        cells = F.max_pool2d(torch.from_numpy(mask)[None, None].float(), self.vae_scale_factor).bool().to(known.device)
        if skipped:
            latents = alphas[skipped] * known + sigmas[skipped] * noise
        else:
            latents = noise * getattr(call.scheduler, "init_noise_sigma", 1.0)

        def after_step(i: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            following = skipped + i + 1
            original = known
            if following < len(timesteps):
                original = alphas[following] * known + sigmas[following] * noise
            latents = torch.where(cells, latents, original)
            if callback_on_step_end is None:
                return latents
            callback_kwargs = {"latents": latents} if "latents" in tensor_inputs else {}
            changed: torch.Tensor = callback_on_step_end(call, i, t, callback_kwargs).pop("latents", latents)
            return changed

        steps = timesteps[skipped:]
        return self._denoise(
            call, steps, len(steps) // order, latents, maps, guidance, eta, generator, after_step, skipped
        )


def _read_slices(image: Any) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Slices (B, H, W) as they are given, and the function that brings edited values to their dtype."""
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    is_number = np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
    if array.ndim not in (2, 3) or not is_number or min(array.shape) == 0:
        raise ValueError(
            f"`image` has shape {array.shape} and dtype {array.dtype}, but HU of (H, W) or (B, H, W) are needed."
        )
    slices = array[None] if array.ndim == 2 else array
    if not np.isfinite(slices).all():
        raise ValueError("`image` has values that are not finite, but Hounsfield units are needed.")
    if slices.min() >= 0 or slices.max() - slices.min() < MIN_HU_SPAN:
        raise ValueError(
            f"`image` has values {slices.min()}..{slices.max()}, but Hounsfield units of air and tissue are needed."
        )
    if not np.issubdtype(array.dtype, np.integer):
        return slices, lambda values: values.astype(array.dtype)
    limits = np.iinfo(array.dtype)
    return slices, lambda values: np.clip(np.round(values), limits.min, limits.max).astype(array.dtype)


def _read_masks(mask_image: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Boolean masks of the shape of the slices."""
    masks = mask_image.detach().cpu().numpy() if isinstance(mask_image, torch.Tensor) else np.asarray(mask_image)
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.shape != shape or not np.isin(masks, (0, 1)).all():
        raise ValueError(
            f"`mask_image` has shape {masks.shape}, but boolean values, or 0 and 1, of the shape {shape} of `image` "
            "are needed."
        )
    return masks.astype(bool)


def _read_maps(semantic_map: Any, slices: np.ndarray, pixel_spacing: float) -> np.ndarray:
    """Maps of the shape of the slices, given or made from them."""
    if semantic_map is None:
        return np.stack([semantic_map_from_hu(hu, pixel_spacing) for hu in slices])
    maps = read_semantic_map(semantic_map)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.shape != slices.shape:
        raise ValueError(f"`semantic_map` has shape {maps.shape}, but that of `image`, {slices.shape}, is needed.")
    return maps


def _check_touched(touched: np.ndarray, from_map: bool, volume: bool) -> None:
    """Raise ValueError for a slice, or a volume, of which nothing is to be drawn."""
    has_mask = touched.any((1, 2))
    if has_mask.any() if volume else has_mask.all():
        return
    name, what = ("semantic_map", "no nodule") if from_map else ("mask_image", "no pixel")
    where = "the volume" if volume else f"slice {np.flatnonzero(~has_mask)[0]}"
    raise ValueError(f"`{name}` has {what} to draw in {where}; an edit needs some.")


def _features_by_slice(nodule_features: Any, count: int, volume: bool) -> list[Any]:
    if nodule_features is None or isinstance(nodule_features, Mapping):
        return [nodule_features] * count
    if volume:
        raise ValueError("`nodule_features` is no dict, but an edit of a volume takes one.")
    if not isinstance(nodule_features, (list, tuple)) or len(nodule_features) != count:
        raise ValueError(f"`nodule_features` is no dict, and no list with an entry for each of the {count} slices.")
    return list(nodule_features)


def _features_in_window(features: Any, nodules: Sequence[Nodule], touched: np.ndarray) -> list[Any] | None:
    """What each nodule of a window is asked for; nothing, of those that the mask does not touch."""
    if features is None:
        return None
    height, width = touched.shape
    is_masked = [bool((nodule.mask((height, width)) & touched).any()) for nodule in nodules]
    count = sum(is_masked)
    wishes = [features] * count if isinstance(features, Mapping) else list(features)
    if len(wishes) != count:
        raise ValueError(
            f"`nodule_features` asks for {len(wishes)} nodules of a slice, but its mask touches {count} of the map."
        )
    following = iter(wishes)
    return [(next(following) or {}) if masked else {} for masked in is_masked]
