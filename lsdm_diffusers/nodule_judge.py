"""A judge of nodules that guidance never saw: clean images, another architecture, other patients than the classifiers of the sampler."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .models.nodule_classifier import NODULE_FEATURES
from .nodule_measures import MEASURES, nodule_measures
from .semantic_map import scaled_hu

CENTRE, ENLARGED = 32, 128  # edge in pixels of what the network sees of a crop, and of what that is enlarged to
COMPONENTS = 16  # principal components of its features


def is_malignant(ratings: np.ndarray) -> np.ndarray:
    """Whether a rating 1..5 of malignancy counts as malignant: 2.5, halfway, does, to avoid false negatives (thesis, section 3.4.1)."""
    return np.asarray(ratings) >= 2.5


def calibration_error(predicted: np.ndarray, observed: np.ndarray, low: float, high: float, bins: int = 10) -> float:
    """Expected calibration error: |mean predicted - mean observed| of each of the equal bins of `predicted`, weighted by their counts."""
    bin_of = np.clip(((predicted - low) / (high - low) * bins).astype(int), 0, bins - 1)
    counts, differences = np.bincount(bin_of, minlength=bins), np.bincount(bin_of, predicted - observed, minlength=bins)
    return float(np.abs(differences).sum() / counts.sum())


def area_under_curve(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of (N,) scores for the positive ones, (N,) boolean; NaN for one class.

    By ranks (Mann and Whitney): a bootstrap asks for it too often for scikit-learn's checks.
    """
    count, others = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others)) if count and others else math.nan


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's coefficient of (N,) and (N,); NaN where either is constant or empty."""
    ranks = rankdata(a), rankdata(b)
    return float(np.corrcoef(*ranks)[0, 1]) if len(a) and all(map(np.ptp, ranks)) else math.nan


def rating_agreement(scores: np.ndarray, ratings: np.ndarray, objective: str) -> dict[str, float]:
    """How well scores tell the ratings 1..5 of (N,) nodules; NaN where there is one label only.

    Args:
        scores: of malignancy log-odds for the objective "classification"; for "regression", ratings.

    Returns:
        AUC of malignant (2.5 and more) against benign, AUC of 3.5 and more against benign, accuracy; or Spearman's coefficient and mean
        absolute error; and the calibration error of either.
    """
    if objective == "classification":
        malignant, clear = is_malignant(ratings), (ratings < 2.5) | (ratings >= 3.5)
        probability = 1 / (1 + np.exp(-scores))
        return {
            "auc_ge3": area_under_curve(malignant, scores),
            "auc_ge4": area_under_curve(malignant[clear], scores[clear]),
            "accuracy_ge3": float(((scores > 0) == malignant).mean()),
            "ece": calibration_error(probability, malignant, 0, 1),
        }
    return {
        "spearman": rank_correlation(scores, ratings),
        "mae": float(np.abs(scores - ratings).mean()),
        "ece": calibration_error(scores, ratings, 1, 5),
    }


def readers_agreement(of_nodules: list[list[int]], feature: str) -> dict[str, float]:
    """What readers of the same nodule differ by, the yardstick of any judge: each reader against the mean of the others.

    Args:
        of_nodules: every reader's rating of each nodule; those with one reader are passed over.

    Raises:
        ValueError: where no nodule has two readers.
    """
    several = [np.array(ratings, dtype=np.float64) for ratings in of_nodules if len(ratings) > 1]
    if not several:
        raise ValueError("`of_nodules` has no nodule with two readers, but at least one is needed.")
    one = np.concatenate(several)
    others = np.concatenate([(ratings.sum() - ratings) / (len(ratings) - 1) for ratings in several])
    # the others' mean as the score of a reader's rating: as a log-odds whose sign is that of the class
    objective = "classification" if feature == "malignancy" else "regression"
    figures = rating_agreement(others - 2.5 if objective == "classification" else others, one, objective)
    figures.pop("ece")
    return figures | {"deviation": float(np.mean([ratings.std(ddof=1) for ratings in several])), "nodules": len(several)}


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
            raise ValueError(f"`patients` has {number} patient, but at least 2 are needed, so that each is judged by models of the others.")
        descriptors, malignant = _with_log_area(descriptors), is_malignant(ratings["malignancy"])
        self.fold_of, self.models = {}, []
        for fold, (train, held_out) in enumerate(GroupKFold(min(folds, number)).split(descriptors, groups=patients)):
            if len(np.unique(malignant[train])) == 1:
                raise ValueError("`ratings` has one class of malignancy among the nodules of a fold, but benign and malignant ones are needed.")
            self.fold_of |= dict.fromkeys(patients[held_out], fold)
            self.models.append({})
            for feature in NODULE_FEATURES:
                measured, seen = slice(0, len(MEASURES)), slice(len(MEASURES), None)
                components = PCA(min(COMPONENTS, len(train) - 1), whiten=True, random_state=0)
                columns = [("measured", make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), measured)]
                columns += [("seen", make_pipeline(StandardScaler(), components), seen)]
                regression = LogisticRegression(max_iter=1000) if feature == "malignancy" else Ridge(100)
                model = make_pipeline(ColumnTransformer(columns), regression)
                self.models[-1][feature] = model.fit(descriptors[train], malignant[train] if feature == "malignancy" else ratings[feature][train])

    def score(self, descriptors: np.ndarray, patients: np.ndarray) -> dict[str, np.ndarray]:
        """{feature: (N,)}: log-odds of malignancy, ratings of the others; patients that no fold held out get the mean of all models."""
        descriptors = _with_log_area(descriptors)
        own = np.array([self.fold_of.get(patient, -1) for patient in patients])
        scores = {}
        for feature in NODULE_FEATURES:
            of_models = [model[feature] for model in self.models]
            every = np.stack([m.decision_function(descriptors) if feature == "malignancy" else m.predict(descriptors) for m in of_models])
            scores[feature] = np.where(own >= 0, np.take_along_axis(every, own[None].clip(0), axis=0)[0], every.mean(axis=0))
        return scores
