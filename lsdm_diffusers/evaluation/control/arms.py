"""The arms of the evaluation of guidance: what each one asks for, and its name in files, tables and pictures.

Every arm samples the same maps from the same noise. Only what guides the nodule differs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

from ...nodule_features import HIGHEST_RATING, LOWEST_RATING, NODULE_FEATURES

RATED_FEATURES = ("texture", "spiculation", "lobulation")  # guided by a regression of their rating


class ArmKind(StrEnum):
    """What an arm does to a nodule."""

    REAL = "real"  # nothing: the real slice at the nodule's place
    UNGUIDED = "unguided"  # sampled from the map alone
    GUIDED = "guided"  # by the classifier of one feature
    LABEL = "label"  # unguided, but drawn from a map whose nodule has the label benign or malignant
    CONTRAST = "contrast"  # malignancy by the contrast of these two labels
    RATINGS = "ratings"  # one feature by a U-Net that sees ratings, "classifier_free"
    TRUE = "true"  # malignancy guided to the class that the nodule is rated
    OPPOSITE = "opposite"  # malignancy guided to the other class
    SHAM = "sham"  # random gradients, as strong as those of malignancy and drawn anew at each step
    HELD_SHAM = "held sham"  # the same, but one direction is kept for all steps
    SHUFFLED = "shuffled"  # malignancy by a classifier that was trained on shuffled labels


class Pole(Enum):
    """The end of a feature's scale that an arm asks for; for a sham, the sign of its direction."""

    LOW = "-"
    HIGH = "+"


SHAM_KINDS = (ArmKind.SHAM, ArmKind.HELD_SHAM)
METHOD_KINDS = {  # kinds that a user may choose between, and their names in tables
    ArmKind.LABEL: "label alone",
    ArmKind.CONTRAST: "contrast",
    ArmKind.RATINGS: "classifier_free",
    ArmKind.GUIDED: "classifier",
}


@dataclass(frozen=True)
class Arm:
    """One arm.

    Args:
        kind: what it does to the nodule.
        feature: the guided feature, one of `NODULE_FEATURES`; None where nothing is guided.
        pole: the end of the feature's scale that is asked for; None where nothing is guided, and for the kinds TRUE
            and OPPOSITE, whose pole depends on the nodule.
        scale: guidance scale s.
    """

    kind: ArmKind
    feature: str | None = None
    pole: Pole | None = None
    scale: float = 0.0

    @property
    def features(self) -> dict[str, str | int] | None:
        """What `nodule_features` asks for in this arm: {"malignancy": "benign"}, {"texture": 5}; None for nothing."""
        if self.feature is None or self.pole is None:
            return None
        return {self.feature: feature_value(self.feature, self.pole)}

    @property
    def title(self) -> str:
        """The arm in words, without its scale: "malignant", "texture 5", "sham +", "shuffled benign"."""
        if self.feature is None or self.pole is None:
            return self.kind.value
        if self.kind in SHAM_KINDS:
            return f"{self.kind.value} {self.pole.value}"
        words = _pole_words(self.feature, self.pole)
        return words if self.kind is ArmKind.GUIDED else f"{self.kind.value} {words}"

    @property
    def label(self) -> str:
        """The arm in a table or a legend: "unguided", "malignant s=4", "texture 5 s=8"."""
        return f"{self.title} s={self.scale:g}" if self.feature else self.title

    @property
    def name(self) -> str:
        """The arm in the name of a folder: "unguided", "guided-malignant-s4", "held-sham-benign-s16"."""
        words = [self.kind.value]
        if self.feature is not None and self.pole is not None:
            words.append(_pole_words(self.feature, self.pole))
        if self.feature is not None:
            words.append(f"s{self.scale:g}")
        return "-".join(words).replace(" ", "-")


REAL = Arm(ArmKind.REAL)
UNGUIDED = Arm(ArmKind.UNGUIDED)


def feature_value(feature: str, pole: Pole) -> str | int:
    """What `nodule_features` asks for at an end of a scale: "benign" or "malignant"; 1 or 5 of the other features."""
    if feature == "malignancy":
        return "malignant" if pole is Pole.HIGH else "benign"
    return HIGHEST_RATING if pole is Pole.HIGH else LOWEST_RATING


def _pole_words(feature: str, pole: Pole) -> str:
    value = feature_value(feature, pole)
    return str(value) if feature == "malignancy" else f"{feature} {value}"


def guided(feature: str, pole: Pole, scale: float) -> Arm:
    """The arm that a classifier guides to an end of a feature's scale."""
    return Arm(ArmKind.GUIDED, feature, pole, scale)


def low_and_high(feature: str, scale: float, kind: ArmKind = ArmKind.GUIDED) -> tuple[Arm, Arm]:
    """The arms of a kind that ask for the least and for the most of a feature."""
    return Arm(kind, feature, Pole.LOW, scale), Arm(kind, feature, Pole.HIGH, scale)


def planned_arms(
    scales: Sequence[float],
    feature_scales: Sequence[float],
    sham_scale: float,
    with_shuffled: bool,
    contrast_scales: Sequence[float] = (),
    rating_scales: Sequence[float] = (),
) -> list[Arm]:
    """The arms that a run samples, the unguided one first.

    Args:
        scales: s of malignancy.
        feature_scales: s of texture, spiculation and lobulation.
        sham_scale: s of the sham arms and of the shuffled classifier.
        with_shuffled: whether there is a classifier that was trained on shuffled labels.
        contrast_scales: s of label contrast; the label alone stands beside it.
        rating_scales: s of all features for a U-Net that sees ratings.
    """
    arms = [UNGUIDED]
    if contrast_scales:
        arms += low_and_high("malignancy", 0.0, ArmKind.LABEL)
    for scale in contrast_scales:
        arms += low_and_high("malignancy", scale, ArmKind.CONTRAST)
    for scale in rating_scales:
        for feature in NODULE_FEATURES:
            arms += low_and_high(feature, scale, ArmKind.RATINGS)
    for scale in scales:
        arms += low_and_high("malignancy", scale)
    for scale in feature_scales:
        for feature in RATED_FEATURES:
            arms += low_and_high(feature, scale)
    controls = [*SHAM_KINDS, ArmKind.SHUFFLED] if with_shuffled else [*SHAM_KINDS]
    for kind in controls:
        arms += low_and_high("malignancy", sham_scale, kind)
    return arms


def feature_scales(arms: Iterable[Arm], feature: str, kind: ArmKind = ArmKind.GUIDED) -> list[float]:
    """The scales s at which arms of a kind guide a feature, in rising order; the kind is that of classifiers."""
    return sorted({arm.scale for arm in arms if arm.kind is kind and arm.feature == feature})


def arms_by_feature(arms: Iterable[Arm]) -> list[Arm]:
    """The guided arms in the order of tables: by feature, scale and pole; then shams and shuffled ones."""
    listed = list(arms)
    ordered: list[Arm] = []
    for feature in NODULE_FEATURES:
        for scale in feature_scales(listed, feature):
            ordered += low_and_high(feature, scale)
    return ordered + [arm for arm in listed if arm.kind in (*SHAM_KINDS, ArmKind.SHUFFLED)]
