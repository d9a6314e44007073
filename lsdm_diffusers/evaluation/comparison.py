"""How close images are to the real slices of the same maps: the figures of the thesis' tables."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..nodule_crop import CROP
from ..outside_body import blanked
from .metrics import frechet_distance, image_features, kernel_distance, paired_metrics
from .obedience import hu_by_label, hu_distances, label_dice, nodule_obedience
from .slices import EvaluationSlice, pixels_from_hu
from .windows import centred_window

Figures = dict[str, float]  # {name: value}


class Speed:
    """Images a second of each step of the measurement."""

    def __init__(self) -> None:
        self.images: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)

    def add(self, step: str, images: int, seconds: float) -> None:
        self.images[step] += images
        self.seconds[step] += seconds

    @contextmanager
    def clock(self, step: str, images: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(step, images, time.perf_counter() - start)

    def images_a_second(self) -> dict[str, float]:
        return {step: self.images[step] / self.seconds[step] for step in self.images}


class Comparison:
    """Measures sets of images against the real slices of the same maps.

    Args:
        slices: the real slices and their maps.
        extractor: network of FID and KID.
        features_dir: folder that keeps its features.
        lpips: `perceptual_distance("lpips")`, None to leave LPIPS out.
        blank_background: whether table and clothes are removed before whole slices are compared.
        device: of the extractor.
    """

    def __init__(
        self,
        slices: Sequence[EvaluationSlice],
        extractor: torch.nn.Module,
        features_dir: Path,
        lpips: torch.nn.Module | None,
        blank_background: bool,
        device: torch.device,
    ) -> None:
        self.slices, self.lpips, self.blank_background = slices, lpips, blank_background
        self.extractor, self.features_dir, self.device = extractor.to(device), features_dir, device
        self.speed = Speed()
        self.real = [real.hu for real in slices]
        self.real_pixels = self.pixels(slices, self.real)
        self.real_crops = nodule_crops(slices, self.real)

    def measure(self, images: Sequence[np.ndarray]) -> Figures:
        """The figures of one image (H, W) in HU of each map."""
        pixels = self.pixels(self.slices, images)
        figures = self.set_distances(self.real_pixels, pixels)
        with self.speed.clock("pairs", len(images)):
            pairs = paired_metrics(self.real_pixels, pixels, self.lpips)
        figures |= {name: float(values.mean()) for name, values in pairs.items()}
        figures |= self.set_distances(self.real_crops, nodule_crops(self.slices, images), "nodule_")
        figures |= density_distances(self.slices, self.slices, images)
        with self.speed.clock("obedience", len(images)):
            figures |= obedience(self.slices, images)
        return figures

    def yardstick(self, others: Sequence[EvaluationSlice]) -> Figures:
        """The obedience of the real slices, and their distances to slices of other patients, if there are any."""
        figures = obedience(self.slices, self.real)
        if not others:
            return figures
        other_images = [other.hu for other in others]
        figures |= density_distances(self.slices, others, other_images)
        figures |= self.set_distances(self.real_pixels, self.pixels(others, other_images))
        return figures | self.set_distances(self.real_crops, nodule_crops(others, other_images), "nodule_")

    def pixels(self, slices: Sequence[EvaluationSlice], images: Sequence[np.ndarray]) -> torch.Tensor:
        """Images in HU as the metrics take them, (N, 1, H, W), without the background where that was asked for."""
        if self.blank_background:
            images = [blanked(hu, ct_slice.semantic_map) for ct_slice, hu in zip(slices, images, strict=True)]
        return pixels_from_hu(images)

    def set_distances(self, real: torch.Tensor, other: torch.Tensor, prefix: str = "") -> Figures:
        """FID and KID of two sets of images, both cut to the size of the smaller one."""
        size = min(len(real), len(other))
        features = self.features(real[:size]), self.features(other[:size])
        return {f"{prefix}fid": frechet_distance(*features), f"{prefix}kid": kernel_distance(*features)}

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        kept, start = set(self.features_dir.glob("*.npy")), time.perf_counter()
        features = image_features(pixels.to(self.device), self.extractor, self.features_dir)
        step = "cached features" if kept == set(self.features_dir.glob("*.npy")) else "features"
        self.speed.add(step, len(pixels), time.perf_counter() - start)
        return features


def nodule_crops(slices: Sequence[EvaluationSlice], images: Sequence[np.ndarray]) -> torch.Tensor:
    """The 64x64 pixels around each nodule of the maps, (N, 1, 64, 64) in [-1, 1]."""
    crops = []
    for ct_slice, hu in zip(slices, images, strict=True):
        crops += [hu[centred_window(hu.shape, nodule.centroid_yx, CROP)] for nodule in ct_slice.nodules]
    return pixels_from_hu(crops)


def density_distances(
    real_slices: Sequence[EvaluationSlice], slices: Sequence[EvaluationSlice], images: Sequence[np.ndarray]
) -> Figures:
    """Wasserstein-1 distances of the HU under each label, over the deviation of the real HU.

    Args:
        real_slices: the real slices.
        slices: the slices whose maps belong to `images`.
        images: an image (H, W) in HU for each of these.

    Returns:
        `hu_distance`, the mean over labels, and `hu_distance_lung`.
    """
    real_hu = hu_by_label(
        [ct_slice.semantic_map for ct_slice in real_slices], [ct_slice.hu for ct_slice in real_slices]
    )
    hu = hu_by_label([ct_slice.semantic_map for ct_slice in slices], images)
    distances = hu_distances(real_hu, hu)
    figures = {"hu_distance": float(np.mean(list(distances.values())))}
    if "lung" in distances:
        figures["hu_distance_lung"] = distances["lung"]
    return figures


def obedience(slices: Sequence[EvaluationSlice], images: Sequence[np.ndarray]) -> Figures:
    """How far the labels recomputed from images are those of the maps: means over slices, and over nodules."""
    values_by_name: dict[str, list[float]] = defaultdict(list)
    for ct_slice, hu in zip(slices, images, strict=True):
        slice_figures = label_dice(ct_slice.semantic_map, hu, ct_slice.pixel_spacing)
        nodule_figures = nodule_obedience(ct_slice.semantic_map, hu, ct_slice.pixel_spacing)
        for figures in (slice_figures, *nodule_figures):
            for name, value in figures.items():
                values_by_name[name].append(value)
    return {name: float(np.mean(values)) for name, values in values_by_name.items()}
