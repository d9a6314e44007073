"""Arms: what they ask for, and names that tell them apart."""

import pytest

from lsdm_diffusers.evaluation.control.arms import (
    REAL,
    UNGUIDED,
    Arm,
    ArmKind,
    Pole,
    arms_by_feature,
    feature_scales,
    guided,
    low_and_high,
    planned_arms,
)

SHAM = Arm(ArmKind.HELD_SHAM, "malignancy", Pole.HIGH, 16)


@pytest.mark.parametrize(
    ("arm", "label", "name", "features"),
    [
        (UNGUIDED, "unguided", "unguided", None),
        (REAL, "real", "real", None),
        (guided("malignancy", Pole.LOW, 0.5), "benign s=0.5", "guided-benign-s0.5", {"malignancy": "benign"}),
        (guided("texture", Pole.HIGH, 8), "texture 5 s=8", "guided-texture-5-s8", {"texture": 5}),
        (SHAM, "held sham + s=16", "held-sham-malignant-s16", {"malignancy": "malignant"}),
        (Arm(ArmKind.TRUE, "malignancy", None, 4), "true s=4", "true-s4", None),
    ],
)
def test_labels_names_and_what_is_asked_for(arm, label, name, features):
    assert (arm.label, arm.name, arm.features) == (label, name, features)


def test_planned_arms_have_names_of_their_own():
    arms = planned_arms([1, 8, 16], [2, 8], 16, with_shuffled=True)
    assert arms[0] == UNGUIDED
    assert len(arms) == 1 + 3 * 2 + 2 * 3 * 2 + 2 * 2 + 2
    for text in ([arm.name for arm in arms], [arm.label for arm in arms]):
        assert len(set(text)) == len(arms)
    assert not any(arm.kind is ArmKind.SHUFFLED for arm in planned_arms([1], [1], 1, with_shuffled=False))


def test_scales_are_those_of_guided_arms():
    arms = [guided("texture", Pole.LOW, 8), guided("texture", Pole.LOW, 2), SHAM]
    assert feature_scales(arms, "texture") == [2, 8]
    assert feature_scales(arms, "malignancy") == []


def test_arms_of_tables_go_by_feature_and_scale():
    arms = planned_arms([1, 4], [4], 4, with_shuffled=False)
    ordered = arms_by_feature(arms)
    assert set(ordered) == set(arms) - {UNGUIDED}
    assert ordered[:4] == [*low_and_high("malignancy", 1), *low_and_high("malignancy", 4)]
    assert ordered[-1] == Arm(ArmKind.HELD_SHAM, "malignancy", Pole.HIGH, 4)
