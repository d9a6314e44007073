"""Sampling of the arms: each window in each arm, from the same noise, made once and kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from ...labels import SemanticLabel
from ...models.nodule_classifier import NoduleClassifier
from ...pipeline_lsdm import LSDMGuidedPipeline
from ...sampling_defaults import CLASSIFIER, CLASSIFIER_FREE, CONTRAST
from ..images import image_folder, make_missing, prefer_channels_last, read_hu, sample_hu
from ..windows import NoduleWindow, window_file, window_seed
from .arms import METHOD_KINDS, SHAM_KINDS, Arm, ArmKind, Pole
from .sham import ShamGradient

GUIDANCE_METHODS = {ArmKind.CONTRAST: CONTRAST, ArmKind.RATINGS: CLASSIFIER_FREE}
MALIGNANCY_LABELS = {Pole.LOW: SemanticLabel.NODULE_BENIGN, Pole.HIGH: SemanticLabel.NODULE_MALIGNANT}


def with_label(window: NoduleWindow, label: SemanticLabel) -> np.ndarray:
    """The window's map with another label of its own nodule, a copy."""
    semantic_map = window.semantic_map.copy()
    semantic_map[window.mask()] = label
    return semantic_map


class ArmSampler:
    """Samples windows in arms and keeps the images, so that a run that was cut off goes on.

    Args:
        pipe: the pipeline that is evaluated. Those of the sham and shuffled arms share its autoencoder and U-Net.
        shuffled_classifier: malignancy classifier that was trained on shuffled labels, or None.
        output_dir: folder of the run.
        num_inference_steps: denoising steps.
        mixed_precision: "no", "fp16" or "bf16"; part of the folders' names.
        seed: of the noise. Each window has its own noise, which is the same in all arms.
    """

    def __init__(
        self,
        pipe: LSDMGuidedPipeline,
        shuffled_classifier: NoduleClassifier | None,
        output_dir: Path,
        num_inference_steps: int,
        mixed_precision: str,
        seed: int,
    ):
        sham = LSDMGuidedPipeline(**pipe.components)
        self.pipes = dict.fromkeys((ArmKind.UNGUIDED, *METHOD_KINDS), pipe) | dict.fromkeys(SHAM_KINDS, sham)
        folder = image_folder(output_dir, pipe, num_inference_steps, mixed_precision)
        self.folders = dict.fromkeys(self.pipes, folder)
        if shuffled_classifier is not None:
            shuffled = LSDMGuidedPipeline(**{**pipe.components, "malignancy_classifier": shuffled_classifier})
            self.pipes[ArmKind.SHUFFLED] = shuffled
            self.folders[ArmKind.SHUFFLED] = image_folder(output_dir, shuffled, num_inference_steps, mixed_precision)
        for each in self.pipes.values():
            each.set_progress_bar_config(disable=True)
            prefer_channels_last(each)
        self.num_inference_steps, self.seed = num_inference_steps, seed

    def file(self, window: NoduleWindow, arm: Arm) -> Path:
        """The file of a window's image in an arm."""
        edge = len(window.semantic_map)
        return window_file(self.folders[arm.kind] / f"window-{edge}" / arm.name, window, self.seed)

    def sample(self, window: NoduleWindow, arm: Arm) -> np.ndarray:
        """Sample a window in an arm: (edge, edge), int16, in HU."""
        pipe, seed = self.pipes[arm.kind], window_seed(window, self.seed)
        if arm.kind in SHAM_KINDS:
            sign = 1.0 if arm.pole is Pole.HIGH else -1.0
            pipe.gradient_hook = ShamGradient(seed=seed, sign=sign, held=arm.kind is ArmKind.HELD_SHAM)
        semantic_map, features = window.semantic_map, arm.features
        if arm.kind is ArmKind.LABEL and arm.pole is not None:
            semantic_map, features = with_label(window, MALIGNANCY_LABELS[arm.pole]), None
        images = sample_hu(
            pipe,
            [semantic_map],
            [seed],
            nodule_features=None if features is None else [window.features(features)],
            num_inference_steps=self.num_inference_steps,
            guidance_scale=arm.scale,
            guidance_method=GUIDANCE_METHODS.get(arm.kind, CLASSIFIER),
        )
        return images[0]

    def sample_missing(self, accelerator: Accelerator, windows: Sequence[NoduleWindow], arms: Sequence[Arm]) -> None:
        """Sample what is not kept yet, one window after the other in all arms; the processes share the work."""
        jobs = {self.file(window, arm): (window, arm) for window in windows for arm in arms}

        def make_batch(batch: list[tuple[NoduleWindow, Arm]]) -> list[np.ndarray]:
            return [self.sample(window, arm) for window, arm in batch]

        make_missing(accelerator, jobs, make_batch, "arms of nodules")

    def complete(self, windows: Sequence[NoduleWindow], arms: Sequence[Arm]) -> list[NoduleWindow]:
        """The windows that are kept in every arm."""
        return [window for window in windows if all(self.file(window, arm).exists() for arm in arms)]

    def read(self, windows: Sequence[NoduleWindow], arm: Arm) -> list[np.ndarray]:
        """The kept images of windows in an arm, (edge, edge) each, float32, in HU."""
        return [read_hu(self.file(window, arm)) for window in windows]
