"""The slices and nodules that the figures show: sampled once, and kept in files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from ...nodule_features import NODULE_FEATURES
from ..images import guidable_features, image_folder, make_missing, noise_seed, read_hu, sample_hu
from ..slices import EvaluationSlice
from ..windows import NoduleWindow, sample_windows

MALIGNANCIES = ("benign", "malignant")
UNGUIDED_FOLDER = "none"

AskFeatures = Callable[[NoduleWindow], Mapping[str, Any]]  # the features that guide the nodule of a window


@dataclass
class FigureSource:
    """What the figures are drawn from.

    Args:
        pipe: the LSDM pipeline.
        baselines: {name: pipeline} to compare it with.
        slices: the slices that whole-slice figures show.
        windows: the windows around nodules that the other figures show.
        accelerator: its processes share the sampling.
        output_dir: keeps the images in `images/`.
        split: of the slices and windows; part of the folders' names.
        num_inference_steps: denoising steps.
        mixed_precision: of sampling.
        seed: of the noise.
        sample_batch_size: windows sampled together.
        guidance_scale: s of the true ratings.
        feature_scale: s of single features at given values.
        scales: s of the ladder.
        timesteps: t of the gradients.
    """

    pipe: DiffusionPipeline
    baselines: Mapping[str, DiffusionPipeline]
    slices: Sequence[EvaluationSlice]
    windows: Sequence[NoduleWindow]
    accelerator: Accelerator
    output_dir: Path
    split: str
    num_inference_steps: int
    mixed_precision: str
    seed: int
    sample_batch_size: int
    guidance_scale: float
    feature_scale: float
    scales: Sequence[float]
    timesteps: Sequence[int]

    def sample_slices(self, pipe: DiffusionPipeline, features: Sequence[str] = ()) -> list[np.ndarray]:
        """A slice (H, W) in HU of each map, its nodules guided by their true ratings of these features."""
        folder_name = UNGUIDED_FOLDER
        if features:
            folder_name = f"true-{'+'.join(features)}-s{self.guidance_scale:g}"
        folder = image_folder(self.output_dir, pipe, self.num_inference_steps, self.mixed_precision)
        folder = folder / f"{self.split}-slices" / folder_name / f"seed-{self.seed}"

        def make_one(batch: list[EvaluationSlice]) -> np.ndarray:
            ct_slice = batch[0]
            asked: dict[str, Any] = {}
            if features:
                asked = {
                    "nodule_features": [ct_slice.true_ratings(features)],
                    "guidance_scale": self.guidance_scale,
                }
            seeds = [noise_seed(self.seed, ct_slice.number)]
            return sample_hu(
                pipe, [ct_slice.semantic_map], seeds, num_inference_steps=self.num_inference_steps, **asked
            )

        files = {folder / f"{ct_slice.number}.png": ct_slice for ct_slice in self.slices}
        make_missing(self.accelerator, files, make_one, f"slices, {folder_name}")
        return [read_hu(file) for file in files]

    def sample_nodules(
        self,
        name: str = UNGUIDED_FOLDER,
        features: AskFeatures | None = None,
        scale: float = 0.0,
        order: str = "sequential",
    ) -> list[np.ndarray]:
        """The crop (64, 64) in HU around the nodule of each window.

        Args:
            name: of what guides; part of the folder's name.
            features: the features that guide; None for no guidance.
            scale: guidance scale s.
            order: `guidance_order`.
        """
        folder = image_folder(self.output_dir, self.pipe, self.num_inference_steps, self.mixed_precision)
        folder = folder / f"{self.split}-{self.windows[0].hu.shape[0]}"
        asked: dict[str, Any] = {}
        if features is None:
            folder = folder / UNGUIDED_FOLDER
        else:
            folder = folder / f"{name}-s{scale:g}-{order}"
            asked = {"guidance_scale": scale, "guidance_order": order}
        images = sample_windows(
            self.accelerator,
            self.pipe,
            self.windows,
            folder,
            features,
            self.seed,
            self.sample_batch_size,
            num_inference_steps=self.num_inference_steps,
            **asked,
        )
        return [window.crop(image) for window, image in zip(self.windows, images, strict=True)]

    def sample_value(self, feature: str, value: str | float, scale: float) -> list[np.ndarray]:
        """The crop (64, 64) in HU around the nodule of each window, guided to one value of one feature."""
        return self.sample_nodules(f"{feature}-{value}", lambda window: {feature: value}, scale)

    def guidable(self, figure: str, features: Sequence[str] = NODULE_FEATURES) -> list[str]:
        """Those of the features that the pipeline has a classifier for.

        Raises:
            ValueError: for none, which is too few for the figure.
        """
        guidable = [feature for feature in guidable_features(self.pipe) if feature in features]
        if not guidable:
            needed = " or ".join(f"{feature}_classifier" for feature in features)
            raise ValueError(f"--which has {figure}, but the pipeline has no {needed}.")
        return guidable


def true_ratings(features: Sequence[str]) -> AskFeatures:
    """Ask the nodule of a window for its own ratings of these features, where it has them."""

    def ask(window: NoduleWindow) -> dict[str, float]:
        return {feature: window.ratings[feature] for feature in features if window.ratings[feature]}

    return ask
