"""A judge of nodules that guidance never used.

It sees clean images, has another architecture than the guiding classifiers, and is fitted on other patients.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ..nodule_features import NODULE_FEATURES, is_malignant
from .measures import MEASURES, nodule_measures
from .slices import pixels_from_hu

CENTRE = 32  # edge in pixels of the part of a crop that the network sees
ENLARGED = 128  # edge in pixels that this part is enlarged to: the network was trained on larger images
COMPONENTS = 16  # principal components that are kept of the network's features
BATCH_SIZE = 16  # crops that the network sees at a time, which bounds the memory
RIDGE_PENALTY = 100


def describe_nodules(
    hu: np.ndarray, drawn: np.ndarray, pixel_spacing: np.ndarray, extractor: torch.nn.Module
) -> np.ndarray:
    """The descriptors that the judge judges nodules by: measures, and features of a network.

    Args:
        hu: (N, 64, 64) in Hounsfield units, a nodule in the middle of each.
        drawn: boolean masks (N, 64, 64) of the nodules as the maps draw them.
        pixel_spacing: (N,), edge of a pixel in mm.
        extractor: images (B, 1, h, w) in [-1, 1] to features (B, d).

    Returns:
        (N, 6 + d): the six `MEASURES`, then the features.
    """
    measures = [
        list(nodule_measures(crop, mask, spacing).values())
        for crop, mask, spacing in zip(hu, drawn, pixel_spacing, strict=True)
    ]
    margin = (hu.shape[-1] - CENTRE) // 2
    centres = pixels_from_hu(hu[:, margin:-margin, margin:-margin])
    device = next(extractor.parameters()).device
    features = []
    with torch.no_grad():
        for batch in centres.split(BATCH_SIZE):
            enlarged = F.interpolate(batch.to(device), size=(ENLARGED, ENLARGED), mode="bicubic", antialias=True)
            features.append(extractor(enlarged).float().cpu())
    return np.concatenate([np.array(measures), torch.cat(features).numpy()], axis=1)


def _with_log_area(descriptors: np.ndarray) -> np.ndarray:
    """Descriptors with the logarithm of the area: twice as large is one step more suspicious, whatever the size."""
    area, others = descriptors[:, :1], descriptors[:, 1:]
    return np.concatenate([np.log1p(area), others], axis=1)


def _regression(feature: str, num_nodules: int) -> Pipeline:
    """An unfitted model of one feature, to be fitted on this number of nodules."""
    measures, network_features = slice(0, len(MEASURES)), slice(len(MEASURES), None)
    components = PCA(min(COMPONENTS, num_nodules - 1), whiten=True, random_state=0)
    columns = [
        ("measures", make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), measures),
        ("network", make_pipeline(StandardScaler(), components), network_features),
    ]
    regression = LogisticRegression(max_iter=1000) if feature == "malignancy" else Ridge(RIDGE_PENALTY)
    return make_pipeline(ColumnTransformer(columns), regression)


class NoduleJudge:
    """Logistic regression of malignancy and ridge regressions of the other ratings, fitted on real nodules.

    The models are cross-fitted by patient: a nodule, real or generated, is judged by the models that were fitted
    without its patient's nodules.

    Args:
        descriptors: (N, 6 + d) of real nodules, from `describe_nodules`.
        ratings: {feature: (N,)}, 1..5.
        patients: (N,), the patient of each nodule.
        folds: number of parts that the patients are divided into; as many as there are patients, if these are fewer.

    Raises:
        ValueError: for nodules of one patient only, or of one class of malignancy in a fold.
    """

    def __init__(
        self, descriptors: np.ndarray, ratings: Mapping[str, np.ndarray], patients: np.ndarray, folds: int = 5
    ) -> None:
        num_patients = len(np.unique(patients))
        if num_patients < 2:
            raise ValueError(
                f"`patients` has {num_patients} patient, but at least 2 are needed, "
                "so that each is judged by models of the others."
            )
        descriptors = _with_log_area(descriptors)
        malignant = is_malignant(ratings["malignancy"])
        targets = {**ratings, "malignancy": malignant}
        self.fold_by_patient: dict[str, int] = {}
        self.models: list[dict[str, Any]] = []  # {feature: fitted model} of each fold
        parts = GroupKFold(min(folds, num_patients)).split(descriptors, groups=patients)
        for fold, (fitted_on, held_out) in enumerate(parts):
            if len(np.unique(malignant[fitted_on])) == 1:
                raise ValueError(
                    "`ratings` has one class of malignancy among the nodules of a fold, "
                    "but benign and malignant ones are needed."
                )
            self.fold_by_patient |= dict.fromkeys(patients[held_out], fold)
            models = {feature: _regression(feature, len(fitted_on)) for feature in NODULE_FEATURES}
            for feature, model in models.items():
                model.fit(descriptors[fitted_on], targets[feature][fitted_on])
            self.models.append(models)

    def score(self, descriptors: np.ndarray, patients: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
        """Judge nodules.

        Args:
            descriptors: (N, 6 + d), from `describe_nodules`.
            patients: (N,), the patient of each nodule. Patients that the judge was not fitted on get the mean of all
                models.

        Returns:
            {feature: (N,)}: log-odds of malignancy, and ratings of the other features.
        """
        descriptors = _with_log_area(descriptors)
        folds = np.array([self.fold_by_patient.get(patient, -1) for patient in patients])
        scores = {}
        for feature in NODULE_FEATURES:
            by_fold = np.stack([_predict(models[feature], feature, descriptors) for models in self.models])
            without_patient = np.take_along_axis(by_fold, folds[None].clip(0), axis=0)[0]
            scores[feature] = np.where(folds >= 0, without_patient, by_fold.mean(axis=0))
        return scores


def _predict(model: Pipeline, feature: str, descriptors: np.ndarray) -> np.ndarray:
    return model.decision_function(descriptors) if feature == "malignancy" else model.predict(descriptors)
