"""A judge of nodules that guidance never saw: clean images, another architecture, other patients than the classifiers of the sampler."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..hounsfield import scaled_hu
from ..nodule_features import NODULE_FEATURES, is_malignant
from .measures import MEASURES, nodule_measures

CENTRE, ENLARGED = 32, 128  # edge in pixels of what the network sees of a crop, and of what that is enlarged to
COMPONENTS = 16  # principal components of its features


def describe_nodules(hu: np.ndarray, drawn: np.ndarray, spacing: np.ndarray, extractor: torch.nn.Module) -> np.ndarray:
    """What the judge sees of nodules, (N, 6 + d): the measures of `nodule_measures`, then the features of a network.

    Args:
        hu: (N, 64, 64), a nodule in the middle of each.
        drawn: boolean masks (N, 64, 64) of the nodules as the maps draw them.
        spacing: (N,), mm.
        extractor: images (B, 1, h, w) in [-1, 1] to features (B, d).
    """
    measured = np.array([list(nodule_measures(*some).values()) for some in zip(hu, drawn, spacing, strict=True)])
    margin = (hu.shape[-1] - CENTRE) // 2
    pixels = torch.from_numpy(scaled_hu(hu.astype(np.float32)))[:, None, margin:-margin, margin:-margin]
    device = next(extractor.parameters()).device
    features = []
    with torch.no_grad():
        for batch in pixels.split(16):
            enlarged = F.interpolate(batch.to(device), size=(ENLARGED, ENLARGED), mode="bicubic", antialias=True)
            features.append(extractor(enlarged).float().cpu())
    return np.concatenate([measured, torch.cat(features).numpy()], axis=1)


def _with_log_area(descriptors):
    # a nodule twice as large is one step more suspicious, whatever its size
    return np.concatenate([np.log1p(descriptors[:, :1]), descriptors[:, 1:]], axis=1)


class NoduleJudge:
    """Logistic regression of malignancy and ridge regressions of the other ratings, fitted on real nodules and cross-fitted by patient.

    A nodule, real or generated, is judged by the models that saw none of its patient's nodules.

    Args:
        descriptors: (N, 6 + d) of real nodules, from `describe_nodules`.
        ratings: {feature: (N,)}, 1..5.
        patients: (N,), the patient of each.
        folds: the patients are parted into so many, or fewer where there are fewer patients.

    Raises:
        ValueError: for nodules of one patient only, or of one class of malignancy in a fold.
    """

    def __init__(self, descriptors: np.ndarray, ratings: dict[str, np.ndarray], patients: np.ndarray, folds: int = 5):
        number = len(np.unique(patients))
        if number < 2:
            raise ValueError(
                f"`patients` has {number} patient, but at least 2 are needed, so that each is judged by models of the others."
            )
        descriptors, malignant = _with_log_area(descriptors), is_malignant(ratings["malignancy"])
        self.fold_of, self.models = {}, []
        for fold, (train, held_out) in enumerate(GroupKFold(min(folds, number)).split(descriptors, groups=patients)):
            if len(np.unique(malignant[train])) == 1:
                raise ValueError(
                    "`ratings` has one class of malignancy among the nodules of a fold, but benign and malignant ones are needed."
                )
            self.fold_of |= dict.fromkeys(patients[held_out], fold)
            self.models.append({})
            for feature in NODULE_FEATURES:
                measured, seen = slice(0, len(MEASURES)), slice(len(MEASURES), None)
                components = PCA(min(COMPONENTS, len(train) - 1), whiten=True, random_state=0)
                columns = [
                    ("measured", make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), measured)
                ]
                columns += [("seen", make_pipeline(StandardScaler(), components), seen)]
                regression = LogisticRegression(max_iter=1000) if feature == "malignancy" else Ridge(100)
                model = make_pipeline(ColumnTransformer(columns), regression)
                self.models[-1][feature] = model.fit(
                    descriptors[train], malignant[train] if feature == "malignancy" else ratings[feature][train]
                )

    def score(self, descriptors: np.ndarray, patients: np.ndarray) -> dict[str, np.ndarray]:
        """{feature: (N,)}: log-odds of malignancy, ratings of the others; patients that no fold held out get the mean of all models."""
        descriptors = _with_log_area(descriptors)
        own = np.array([self.fold_of.get(patient, -1) for patient in patients])
        scores = {}
        for feature in NODULE_FEATURES:
            of_models = [model[feature] for model in self.models]
            every = np.stack(
                [
                    m.decision_function(descriptors) if feature == "malignancy" else m.predict(descriptors)
                    for m in of_models
                ]
            )
            scores[feature] = np.where(
                own >= 0, np.take_along_axis(every, own[None].clip(0), axis=0)[0], every.mean(axis=0)
            )
        return scores
