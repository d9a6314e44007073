"""The results of a run: means of what was measured in each arm, and differences of arms, with their intervals."""

import math
from dataclasses import dataclass

import numpy as np

from ...nodule_features import is_malignant
from ..bootstrap import Estimate, patient_bootstrap
from .arms import UNGUIDED, Arm, ArmKind, feature_scales
from .measurements import DrawnNodules, Measurements, RealNodules


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class ControlResults:
    """What was measured in a run.

    Args:
        nodules: the N nodules that the arms draw.
        measurements: {measure: {arm: (N,)}} from `measure_arms`; NaN where a nodule has no such measure.
        real: the M real nodules that the judge was fitted on.
        real_measurements: {measure: (M,)} from `measure_real_nodules`.
        feature_scale: s at which the features are compared with each other.
        sham_scale: s of the sham and shuffled arms.
    """

    nodules: DrawnNodules
    measurements: Measurements
    real: RealNodules
    real_measurements: dict[str, np.ndarray]
    feature_scale: float
    sham_scale: float

    @property
    def arms(self) -> list[Arm]:
        """Every arm, the real slices and the arms by rating included."""
        return list(self.measurements["area_px"])

    @property
    def malignant(self) -> np.ndarray:
        """Whether each nodule is rated malignant, boolean (N,)."""
        return is_malignant(self.nodules.malignancy)

    @property
    def size(self) -> str:
        """The number of nodules and patients, for captions."""
        patients = self.nodules.patients
        return f"n = {len(patients)} nodules of {len(np.unique(patients))} patients"

    @property
    def real_size(self) -> str:
        """The number of real nodules and their patients, for captions."""
        patients = self.real.patients
        return f"n = {len(patients)} real nodules of {len(np.unique(patients))} patients"

    def scales(self, feature: str, kind: ArmKind = ArmKind.GUIDED) -> list[float]:
        """The scales s at which arms of a kind guide a feature, in rising order; the kind is that of classifiers."""
        return feature_scales(self.arms, feature, kind)

    def unit(self, measure: str) -> float:
        """Standard deviation of a measure over the real nodules; NaN where they are all alike."""
        return float(np.nanstd(self.real_measurements[measure])) or math.nan

    def estimate(self, measure: str, arm: Arm, base: Arm | None = None, unit: float = 1.0) -> Estimate:
        """Mean of a measure in an arm, or of its difference from another arm.

        Args:
            measure: a key of `measurements`.
            arm: the arm.
            base: the arm to subtract; None for no difference.
            unit: what the mean is divided by.
        """
        values = self.measurements[measure][arm]
        if base is not None:
            values = values - self.measurements[measure][base]
        measured = np.isfinite(values)
        if not measured.any() or math.isnan(unit):
            return {"mean": math.nan, "interval": [math.nan, math.nan]}
        return patient_bootstrap(values[measured] / unit, self.nodules.patients[measured])

    def gain(self, measure: str, arm: Arm, base: Arm = UNGUIDED) -> Estimate:
        """`estimate` of a difference, in standard deviations of the real nodules."""
        return self.estimate(measure, arm, base, self.unit(measure))
