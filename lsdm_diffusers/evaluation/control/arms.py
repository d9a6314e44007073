"""The arms of guided nodules that `training/evaluate_control.py` keeps, real nodules to compare with, and every figure of each."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from ...hounsfield import HU_MAX, HU_MIN, scaled_hu
from ...nodule_crop import CROP
from ...nodule_features import NODULE_FEATURES
from ...pipeline_lsdm import LSDMGuidedPipeline
from ...semantic_map import find_nodules
from ..judge import NoduleJudge, describe_nodules
from ..measures import MEASURES, RING_NAMES, nodule_tissue, seam_energy
from ..obedience import nodule_obedience
from ..windows import nodule_windows


@dataclass
class KeptNodule:
    """One nodule of a validation map and what each arm made of it; images are (96, 96) around the nodule.

    Args:
        about: its ratings, `patient_id`, `pixel_spacing_mm` and `classifier_corner_yx`, the top left of the classifiers' crop.
        semantic_map: labels.
        drawn: boolean mask of the nodule.
        arms: {arm: HU}; the arm "real" is the real slice at the same place.
        change: {arm: mean |arm - none| in each ring around the nodule}.
    """

    about: dict
    semantic_map: np.ndarray
    drawn: np.ndarray
    arms: dict[str, np.ndarray]
    change: dict[str, np.ndarray]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The classifiers' crop."""
        y, x = self.about["classifier_corner_yx"]
        return y, x, y + CROP, x + CROP

    def crop(self, image: np.ndarray) -> np.ndarray:
        """What the classifiers see of an image."""
        y0, x0, y1, x1 = self.box
        return image[y0:y1, x0:x1]


def read_kept(folder: Path) -> list[KeptNodule]:
    """The nodules that are kept in a folder, in order; arms that were added later are there for those nodules that have them."""
    nodules = []
    for main in sorted(folder.glob("*-main.npz")):
        number, arms, change = main.name.split("-")[0], {}, {}
        for file in [main, *sorted(set(folder.glob(f"{number}-*.npz")) - {main})]:
            with np.load(file, allow_pickle=False) as kept:
                names = [str(name) for name in kept["arms"]]
                arms |= dict(zip(names, kept["hu"], strict=True))
                change |= dict(zip(names, kept["change_by_distance"], strict=True))
                if file == main:
                    shared = json.loads(str(kept["about"])), kept["semantic_map"], kept["nodule_mask"]
                    arms["real"] = kept["real_hu"]
        nodules.append(KeptNodule(*shared, arms, change))
    return nodules


@dataclass
class RealNodules:
    """The real nodules of a split: `hu` and `drawn` (M, 64, 64), `spacing` (M,) in mm, `patients` (M,), and their entries of `nodules`."""

    hu: np.ndarray
    drawn: np.ndarray
    spacing: np.ndarray
    patients: np.ndarray
    entries: list[dict]

    @property
    def ratings(self) -> dict[str, np.ndarray]:
        """{feature: (M,)}, 1..5."""
        return {
            feature: np.array([entry[feature] for entry in self.entries], dtype=np.float64)
            for feature in NODULE_FEATURES
        }


def read_real(split: Dataset) -> RealNodules:
    """The real nodules of a split whose maps show them."""
    windows = list(nodule_windows(split, CROP))
    drawn = [find_nodules(window.semantic_map)[window.index].mask(window.semantic_map.shape) for window in windows]
    columns = ([getattr(window, name) for window in windows] for name in ("pixel_spacing", "patient_id"))
    return RealNodules(
        np.stack([w.hu for w in windows]), np.stack(drawn), *map(np.array, columns), [w.ratings for w in windows]
    )


@torch.no_grad()
def decoded_crops(pipe: LSDMGuidedPipeline, hu: np.ndarray) -> torch.Tensor:
    """Crops (N, 64, 64) in HU, encoded and decoded: what the classifiers see in sampling, without noise; (N, 1, 64, 64) in [-1, 1]."""
    pixels = torch.from_numpy(scaled_hu(hu.astype(np.float32)))[:, None].to(pipe.device, pipe.vae.dtype)
    return torch.cat([pipe.vae.decode(pipe.vae.encode(batch).latent_dist.mode()).sample for batch in pixels.split(32)])


@torch.no_grad()
def classifier_scores(pipe: LSDMGuidedPipeline, decoded: torch.Tensor) -> dict[str, np.ndarray]:
    """{feature: (N,)}: what the guiding classifiers say of `decoded_crops`, at timestep 0; log-odds of malignancy, or ratings."""
    scores = {}
    for feature, classifier in pipe.classifiers.items():
        output = torch.cat([classifier(batch, 0) for batch in decoded.split(32)]).double().cpu()
        scores[feature] = (
            output[:, 1] - output[:, 0] if classifier.config.objective == "classification" else output
        ).numpy()
    return scores


def arm_figures(
    nodules: list[KeptNodule], judge: NoduleJudge, extractor: torch.nn.Module, pipe: LSDMGuidedPipeline
) -> dict[str, dict]:
    """{figure: {arm: (N,)}}, NaN where a nodule has no such arm.

    Figures: those of `nodule_measures`; `area_px`; `judge <feature>` and `classifier <feature>`; Dice, diameter error and misses of
    `nodule_obedience`; `change <ring>`; `seam` and `inside seam`, the energies at the edge of the classifiers' crop and just inside.
    """
    arms = list(dict.fromkeys(arm for nodule in nodules for arm in nodule.arms))
    patients = np.array([nodule.about["patient_id"] for nodule in nodules])
    figures: dict[str, dict] = {}
    for arm in arms:
        there = np.flatnonzero([arm in nodule.arms for nodule in nodules])
        some = [nodules[i] for i in there]
        hu, drawn = (
            np.stack(images) for images in zip(*((n.crop(n.arms[arm]), n.crop(n.drawn)) for n in some), strict=True)
        )
        spacing = np.array([n.about["pixel_spacing_mm"] for n in some])
        descriptors = describe_nodules(hu, drawn, spacing, extractor)
        columns = dict(zip(MEASURES, descriptors.T, strict=False))
        columns |= {
            f"judge {feature}": values for feature, values in judge.score(descriptors, patients[there]).items()
        }
        columns |= {
            f"classifier {feature}": values
            for feature, values in classifier_scores(pipe, decoded_crops(pipe, hu)).items()
        }
        for name, value in [item for n in some for item in _figures_of_one(n, arm).items()]:
            columns.setdefault(name, []).append(value)
        for name, values in columns.items():
            column = figures.setdefault(name, {}).setdefault(arm, np.full(len(nodules), np.nan))
            column[there] = values
    return figures


def _figures_of_one(nodule: KeptNodule, arm: str) -> dict[str, float]:
    hu, unguided = nodule.arms[arm], nodule.arms["none"]
    drawn_there = [found.mask(hu.shape) & nodule.drawn for found in find_nodules(nodule.semantic_map)]
    own = int(np.argmax([mask.sum() for mask in drawn_there]))
    figures = {"area_px": float(nodule_tissue(hu, nodule.drawn).sum())}
    figures |= nodule_obedience(nodule.semantic_map, hu, nodule.about["pixel_spacing_mm"])[own]
    if arm != "real":
        figures |= {f"change {ring}": value for ring, value in zip(RING_NAMES, nodule.change[arm], strict=True)}
        figures["seam"], figures["inside seam"] = seam_energy(hu.astype(np.float64) - unguided, nodule.box)
    return figures


def real_figures(
    real: RealNodules,
    judge: NoduleJudge,
    descriptors: np.ndarray,
    extractor: torch.nn.Module,
    pipe: LSDMGuidedPipeline,
) -> dict[str, np.ndarray]:
    """{figure: (M,)} of real nodules: the measures, both judges, and the judge's scores of their `decoded_crops`."""
    decoded = decoded_crops(pipe, real.hu)
    decoded_hu = (decoded[:, 0].double().cpu().numpy().clip(-1, 1) + 1) / 2 * (HU_MAX - HU_MIN) + HU_MIN
    seen = {"judge": descriptors, "decoded judge": describe_nodules(decoded_hu, real.drawn, real.spacing, extractor)}
    figures = dict(zip(MEASURES, descriptors.T, strict=False))
    figures |= {
        f"{name} {f}": scores for name, some in seen.items() for f, scores in judge.score(some, real.patients).items()
    }
    return figures | {f"classifier {feature}": values for feature, values in classifier_scores(pipe, decoded).items()}
