"""What is measured of every nodule in every arm, and of the real nodules that the judge is fitted on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from ...hounsfield import hu_from_scaled
from ...nodule_crop import CROP, crop_box
from ...nodule_features import NODULE_FEATURES, is_malignant
from ...pipeline_lsdm import LSDMGuidedPipeline
from ..images import reconstruct
from ..judge import NoduleJudge, describe_nodules
from ..measures import MEASURES, RING_NAMES, change_by_distance, nodule_tissue, seam_energy
from ..obedience import nodule_obedience
from ..slices import pixels_from_hu
from ..windows import NoduleWindow, nodule_windows
from .arms import REAL, UNGUIDED, Arm, ArmKind, feature_scales, low_and_high

CLASSIFIER_BATCH = 32  # crops that the classifiers score at a time
MEASURE_TITLES = {
    "area_mm2": "area",
    "mean_hu": "mean HU",
    "spread_hu": "spread of HU",
    "circularity": "circularity",
    "solidity": "solidity",
    "margin_hu_per_mm": "margin",
}

Measurements = dict[str, dict[Arm, np.ndarray]]  # {measure: {arm: (N,)}}
Box = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels, half-open


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class DrawnNodules:
    """N nodules of semantic maps, which every arm draws; crops are what the guiding classifiers see.

    Args:
        patients: (N,), the patient of each nodule.
        malignancy: (N,), ratings 1..5.
        pixel_spacing: (N,), edge of a pixel in mm.
        semantic_maps: crops of the maps, labels, (N, 64, 64).
        drawn: where the maps draw the nodules, boolean, (N, 64, 64).
        crops: {arm: crops in HU, (N, 64, 64)}.
    """

    patients: np.ndarray
    malignancy: np.ndarray
    pixel_spacing: np.ndarray
    semantic_maps: np.ndarray
    drawn: np.ndarray
    crops: dict[Arm, np.ndarray]


@dataclass(frozen=True, eq=False)
class RealNodules:
    """M real nodules of a split.

    Args:
        patients: (M,), the patient of each nodule.
        ratings: {feature: (M,)}, 1..5.
        reader_ratings: {feature: the readers' ratings of each nodule}; empty lists where the dataset has none.
        pixel_spacing: (M,), edge of a pixel in mm.
        hu: crops, (M, 64, 64).
        drawn: where the maps draw the nodules, boolean, (M, 64, 64).
    """

    patients: np.ndarray
    ratings: dict[str, np.ndarray]
    reader_ratings: dict[str, list[list[int]]]
    pixel_spacing: np.ndarray
    hu: np.ndarray
    drawn: np.ndarray


def read_real_nodules(split: Dataset) -> RealNodules:
    """The real nodules of a split that its maps show.

    Raises:
        ValueError: where there are none.
    """
    windows = list(nodule_windows(split, CROP))
    if not windows:
        raise ValueError("`split` has no nodule that its maps show, but at least one is needed.")
    ratings = {name: np.array([w.ratings[name] for w in windows], dtype=np.float64) for name in NODULE_FEATURES}
    readers = {name: [w.ratings.get(f"{name}_ratings") or [] for w in windows] for name in NODULE_FEATURES}
    return RealNodules(
        patients=np.array([window.patient_id for window in windows]),
        ratings=ratings,
        reader_ratings=readers,
        pixel_spacing=np.array([window.pixel_spacing for window in windows]),
        hu=np.stack([window.hu for window in windows]),
        drawn=np.stack([window.mask() for window in windows]),
    )


def measure_real_nodules(
    real: RealNodules,
    judge: NoduleJudge,
    descriptors: np.ndarray,
    extractor: torch.nn.Module,
    pipe: LSDMGuidedPipeline,
) -> dict[str, np.ndarray]:
    """Measure the real nodules, as they are and through the autoencoder.

    Args:
        real: the nodules.
        judge: fitted on them.
        descriptors: (M, 6 + d), what it was fitted on.
        extractor: the judge's network.
        pipe: its autoencoder and classifiers.

    Returns:
        {measure: (M,)}: `MEASURES`; "judge <feature>"; "decoded judge <feature>", the judge's score of the nodule
        encoded and decoded, which is as near as a sampled one can come; "classifier <feature>" of the guiding
        classifiers.
    """
    decoded = reconstruct(pipe.vae, pixels_from_hu(list(real.hu)))
    decoded_hu = hu_from_scaled(decoded[:, 0].double().clamp(-1, 1)).cpu().numpy()
    decoded_descriptors = describe_nodules(decoded_hu, real.drawn, real.pixel_spacing, extractor)
    measurements = _named_measures(descriptors)
    measurements |= _with_prefix("judge", judge.score(descriptors, real.patients))
    measurements |= _with_prefix("decoded judge", judge.score(decoded_descriptors, real.patients))
    return measurements | _with_prefix("classifier", classifier_scores(pipe, decoded))


@torch.no_grad()
def classifier_scores(pipe: LSDMGuidedPipeline, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """The scores of the guiding classifiers for images without noise, at timestep 0.

    Args:
        pipe: its classifiers.
        pixels: (N, 1, 64, 64) in [-1, 1], decoded by the pipeline's autoencoder, as the classifiers see them in
            sampling.

    Returns:
        {feature: (N,)}: log-odds of malignancy, ratings of the other features.
    """
    scores = {}
    for feature, classifier in pipe.classifiers.items():
        batches = [classifier(batch, 0).prediction for batch in pixels.split(CLASSIFIER_BATCH)]
        output = torch.cat(batches).double().cpu().numpy()
        is_classification = classifier.config.objective == "classification"
        scores[feature] = output[:, 1] - output[:, 0] if is_classification else output
    return scores


def measure_arms(
    windows: Sequence[NoduleWindow],
    arms: Sequence[Arm],
    read_images: Callable[[Arm], list[np.ndarray]],
    judge: NoduleJudge,
    extractor: torch.nn.Module,
    pipe: LSDMGuidedPipeline,
) -> tuple[DrawnNodules, Measurements]:
    """Measure every nodule in every arm; the real slice is an arm, too.

    Args:
        windows: N windows around the nodules.
        arms: the sampled arms; the unguided one is among them.
        read_images: reads an arm's image of every window, in HU.
        judge: of the nodules' crops.
        extractor: the judge's network.
        pipe: its autoencoder and classifiers.

    Returns:
        The nodules, and {measure: {arm: (N,)}}: `MEASURES` and "area_px"; "judge <feature>"; "classifier <feature>";
        those of `nodule_obedience`; and, except for the real slices, "change <ring>" of `RING_NAMES` and the energies
        "seam" and "inside seam" of `seam_energy`. Malignancy has the arms TRUE and OPPOSITE as well.
    """
    boxes = [classifier_box(window, pipe.vae_scale_factor) for window in windows]
    patients = np.array([window.patient_id for window in windows])
    pixel_spacing = np.array([window.pixel_spacing for window in windows])
    drawn = _crop_all([window.mask() for window in windows], boxes)
    unguided = read_images(UNGUIDED)
    crops: dict[Arm, np.ndarray] = {}
    measurements: Measurements = {}
    for arm in [REAL, *arms]:
        images = [window.hu for window in windows] if arm == REAL else read_images(arm)
        crops[arm] = _crop_all(images, boxes)
        descriptors = describe_nodules(crops[arm], drawn, pixel_spacing, extractor)
        columns = _named_measures(descriptors)
        columns |= _with_prefix("judge", judge.score(descriptors, patients))
        decoded = reconstruct(pipe.vae, pixels_from_hu(list(crops[arm])))
        columns |= _with_prefix("classifier", classifier_scores(pipe, decoded))
        obeyed = [_obedience(window, image) for window, image in zip(windows, images, strict=True)]
        columns |= {name: np.array([values[name] for values in obeyed]) for name in obeyed[0]}
        tissue = [nodule_tissue(*nodule) for nodule in zip(crops[arm], drawn, pixel_spacing, strict=True)]
        columns["area_px"] = np.array([mask.sum() for mask in tissue], dtype=np.float64)
        if arm != REAL:
            changes = [image.astype(np.float64) - before for image, before in zip(images, unguided, strict=True)]
            columns |= _change_columns(changes, windows, boxes)
        for name, values in columns.items():
            measurements.setdefault(name, {})[arm] = values
    malignancy = np.array([window.ratings["malignancy"] for window in windows], dtype=np.float64)
    semantic_maps = _crop_all([window.semantic_map for window in windows], boxes)
    nodules = DrawnNodules(patients, malignancy, pixel_spacing, semantic_maps, drawn, crops)
    return nodules, with_rating_arms(measurements, malignancy)


def classifier_box(window: NoduleWindow, factor: int) -> Box:
    """The crop of a window that the guiding classifiers see, which lies on whole latents of `factor` pixels."""
    height, width = window.semantic_map.shape
    y0, x0, y1, x1 = crop_box(window.nodule.centroid_yx, (height // factor, width // factor), factor)
    return y0 * factor, x0 * factor, y1 * factor, x1 * factor


def with_rating_arms(measurements: Measurements, malignancy: np.ndarray) -> Measurements:
    """Add the arms TRUE and OPPOSITE: malignancy guided to the class that each nodule is rated, and to the other one.

    Args:
        measurements: {measure: {arm: (N,)}} with guided malignancy.
        malignancy: (N,), the nodules' ratings.
    """
    malignant = is_malignant(malignancy)
    result: Measurements = {}
    for name, by_arm in measurements.items():
        result[name] = dict(by_arm)
        for scale in feature_scales(by_arm, "malignancy"):
            low, high = (by_arm[arm] for arm in low_and_high("malignancy", scale))
            result[name][Arm(ArmKind.TRUE, "malignancy", None, scale)] = np.where(malignant, high, low)
            result[name][Arm(ArmKind.OPPOSITE, "malignancy", None, scale)] = np.where(malignant, low, high)
    return result


def _crop_all(images: Sequence[np.ndarray], boxes: Sequence[Box]) -> np.ndarray:
    return np.stack([image[y0:y1, x0:x1] for image, (y0, x0, y1, x1) in zip(images, boxes, strict=True)])


def _named_measures(descriptors: np.ndarray) -> dict[str, np.ndarray]:
    return {name: descriptors[:, column] for column, name in enumerate(MEASURES)}


def _with_prefix(prefix: str, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix} {feature}": values for feature, values in scores.items()}


def _obedience(window: NoduleWindow, hu: np.ndarray) -> dict[str, float]:
    return nodule_obedience(window.semantic_map, hu, window.pixel_spacing)[window.index]


def _change_columns(
    changes: Sequence[np.ndarray], windows: Sequence[NoduleWindow], boxes: Sequence[Box]
) -> dict[str, np.ndarray]:
    """Where an arm changed the unguided image, and the step of that change at the edge of the classifiers' crop."""
    rings = np.stack([change_by_distance(*pair) for pair in zip(changes, (w.mask() for w in windows), strict=True)])
    seams = np.array([seam_energy(change, box) for change, box in zip(changes, boxes, strict=True)])
    columns = {f"change {ring}": rings[:, number] for number, ring in enumerate(RING_NAMES)}
    return columns | {"seam": seams[:, 0], "inside seam": seams[:, 1]}
