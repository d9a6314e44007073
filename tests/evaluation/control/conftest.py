"""Results of twelve made-up nodules of six patients."""

import numpy as np
import pytest

from lsdm_diffusers.evaluation.control.arms import REAL, UNGUIDED, low_and_high
from lsdm_diffusers.evaluation.control.measurements import DrawnNodules, RealNodules, with_rating_arms
from lsdm_diffusers.evaluation.control.results import ControlResults
from lsdm_diffusers.nodule_features import NODULE_FEATURES

BENIGN, MALIGNANT = low_and_high("malignancy", 1)


def square(edge):
    """A mask of 64x64 pixels with a square in the middle."""
    return np.pad(np.ones((edge, edge), dtype=bool), (64 - edge) // 2)


@pytest.fixture
def results():
    """The judge gains half of what the guiding classifier gains, by malignancy alone.

    Every second nodule is malignant. Four are drawn with 4 pixels of 0.7 mm, the others with 12.
    """
    generator = np.random.default_rng(0)
    noise, gains = generator.standard_normal(12), generator.uniform(1, 3, 12)
    signs = {UNGUIDED: 0, BENIGN: -1, MALIGNANT: 1}
    measurements = {}
    for feature in ("malignancy", "texture"):
        scores = {arm: noise + sign * gains * (feature == "malignancy") for arm, sign in signs.items()}
        measurements[f"classifier {feature}"] = scores
        measurements[f"judge {feature}"] = {arm: values / 2 for arm, values in scores.items()}
    measurements["area_px"] = {arm: np.full(12, 50.0 + 10 * sign) for arm, sign in signs.items()}
    malignancy = 1.0 + 3 * (np.arange(12) % 2)
    measurements = with_rating_arms(measurements, malignancy)
    measurements["area_px"][REAL] = np.where(np.arange(12) < 4, 20.0, 140.0)

    drawn = np.stack([square(4)] * 4 + [square(12)] * 8)
    patients = np.array([f"p{number // 2}" for number in range(12)])
    nodules = DrawnNodules(patients, malignancy, np.full(12, 0.7), np.where(drawn, 7, 4), drawn, {})
    ratings = np.array([1.0, 2, 3, 4] * 2)
    real = RealNodules(
        patients=np.repeat(["p0", "p1"], 4),
        ratings=dict.fromkeys(NODULE_FEATURES, ratings),
        reader_ratings=dict.fromkeys(NODULE_FEATURES, [[]] * 8),
        pixel_spacing=np.full(8, 0.7),
        hu=np.zeros((8, 64, 64)),
        drawn=np.stack([square(4)] * 4 + [square(12)] * 4),
    )
    real_measurements = dict.fromkeys(measurements, np.tile([-1.0, 1.0], 4))
    return ControlResults(nodules, measurements, real, real_measurements, feature_scale=1, sham_scale=1)
