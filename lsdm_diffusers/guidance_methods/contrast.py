"""Label contrast: malignancy by the difference that the map's own label makes (thesis, section 8.2)."""

from collections.abc import Sequence

import numpy as np
import torch

from ..labels import SemanticLabel
from ..nodule_batch import NoduleRequest
from ..nodule_features import feature_rating
from .map_variants import MapVariants
from .step import GuidedStep

OPPOSITE_LABELS = {
    SemanticLabel.NODULE_BENIGN: SemanticLabel.NODULE_MALIGNANT,
    SemanticLabel.NODULE_INDETERMINATE: SemanticLabel.NODULE_INDETERMINATE,  # no contrast: the label alone
    SemanticLabel.NODULE_MALIGNANT: SemanticLabel.NODULE_BENIGN,
}


def asked_label(request: NoduleRequest) -> SemanticLabel:
    """The label that the asked malignancy has in a map: 5 below a rating of 2.5, 7 from 3.5, 6 between them."""
    return SemanticLabel.for_malignancy(feature_rating("malignancy", request.features["malignancy"]))


def paint_asked(maps: np.ndarray, requests: Sequence[NoduleRequest]) -> np.ndarray:
    """m_y: the maps (B, H, W) with each nodule's label set to the asked class, a copy."""
    painted = maps.copy()
    for request in requests:
        painted[request.map_index][request.nodule.mask(maps.shape[1:])] = asked_label(request)
    return painted


def paint_opposite(maps: np.ndarray, requests: Sequence[NoduleRequest]) -> np.ndarray:
    """m_ȳ: the maps (B, H, W) with each nodule's label set to the opposite of the asked class, a copy."""
    painted = maps.copy()
    for request in requests:
        painted[request.map_index][request.nodule.mask(maps.shape[1:])] = OPPOSITE_LABELS[asked_label(request)]
    return painted


class LabelContrast:
    """v(m_y) + s·M·[v(m_y) - v(m_ȳ)]: classifier-free guidance between two maps, for every kind of prediction.

    m_y is the map that is sampled, with the nodules' labels set to the asked class; m_ȳ has the opposite class; M is
    the dilated nodule mask. Both the modulation and the encoded map change with the label.

    Args:
        opposite: the one variant m_ȳ.
    """

    modules: Sequence[torch.nn.Module] = ()

    def __init__(self, opposite: MapVariants):
        self.opposite = opposite

    def __call__(self, model_output: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """Move the output away from that of the opposite label."""
        scale = step.scales["malignancy"]
        if not scale:
            return model_output
        return model_output - scale * self.opposite.differences(step)[0]
