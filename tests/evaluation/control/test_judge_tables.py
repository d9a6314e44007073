"""Tables of what the judge and the guiding classifiers see."""

from dataclasses import replace

import numpy as np
import pytest

from lsdm_diffusers.evaluation.control import judge_tables
from lsdm_diffusers.evaluation.control.arms import REAL, ArmKind, low_and_high
from lsdm_diffusers.evaluation.control.judge_tables import (
    ceiling_table,
    method_table,
    own_rating_table,
    transfer_table,
)


def test_transfer_is_the_ratio_of_gains(results, monkeypatch):
    monkeypatch.setattr(judge_tables, "NODULE_FEATURES", ("malignancy",))
    row = transfer_table(results).rows["malignancy, s = 1"]
    assert row["transfer ratio"] == {"mean": pytest.approx(0.5), "interval": pytest.approx([0.5, 0.5])}
    assert row["gain, judge"]["mean"] == pytest.approx(row["gain, classifier"]["mean"] / 2)
    assert row["gain, judge"]["interval"][0] > 0


def test_methods_stand_beside_what_real_nodules_differ_by(results, monkeypatch):
    """The judge gains half of what the guide gains, and agrees with it in part: a perfect change has the ratio r."""
    monkeypatch.setattr(judge_tables, "NODULE_FEATURES", ("malignancy",))
    generator = np.random.default_rng(1)
    guide = results.real.ratings["malignancy"] - 2.5
    results.real_measurements["classifier malignancy"] = guide
    results.real_measurements["judge malignancy"] = guide + generator.standard_normal(8)
    pairs = {kind: low_and_high("malignancy", 0.5, kind) for kind in (ArmKind.CONTRAST, ArmKind.GUIDED)}
    guided = low_and_high("malignancy", 1)
    for pair in pairs.values():
        for arm, known in zip(pair, guided, strict=True):
            for by_arm in results.measurements.values():
                by_arm[arm] = by_arm[known]
    results.real_measurements["mean_hu"] = np.full(8, -300.0)
    for name in ("mean_hu", "nodule_dice"):
        results.measurements[name] = {arm: np.full(12, 0.5) for arm in results.arms}
    rows = method_table(results).rows
    assert list(rows) == [
        "malignancy, contrast, s = 0.5",
        "malignancy, classifier, s = 0.5",
        "malignancy, classifier, s = 1",
    ]
    judge, row = results.real_measurements["judge malignancy"], rows["malignancy, contrast, s = 0.5"]
    difference = (judge[guide > 0.5].mean() - judge[guide < 0.5].mean()) / judge.std()
    assert row["real difference"] == pytest.approx(difference)
    assert row["gain / real"] == pytest.approx(row["gain, judge"]["mean"] / difference)
    assert row["ratio"] == pytest.approx(0.5 * guide.std() / judge.std())
    assert row["ratio / r"] == pytest.approx(row["ratio"] / np.corrcoef(judge, guide)[0, 1])


def test_the_own_rating_is_told_when_guided_to_it_and_missed_when_guided_away(results):
    for scorer in ("judge", "classifier"):
        results.measurements[f"{scorer} malignancy"][REAL] = results.nodules.malignancy
    rows = own_rating_table(results).rows
    assert rows["real"]["AUC, judge"]["mean"] == 1
    assert rows["true s=1"]["AUC, classifier"]["mean"] > 0.9 > 0.1 > rows["opposite s=1"]["AUC, classifier"]["mean"]


def test_the_ceiling_stands_beside_the_readers(results, monkeypatch):
    """Scores that are the rating in all but the decoded judge, which turns it round; two readers who agree."""
    features = ("malignancy", "texture")
    monkeypatch.setattr(judge_tables, "NODULE_FEATURES", features)
    ratings = np.tile([1.0, 2, 3, 5], 5)
    readers = [[int(rating), int(rating)] for rating in ratings]
    real = replace(
        results.real,
        ratings=dict.fromkeys(features, ratings),
        reader_ratings=dict.fromkeys(features, readers),
        patients=np.repeat(["a", "b", "c", "d", "e"], 4),
    )
    for feature in features:
        results.real_measurements[f"judge {feature}"] = ratings - 2.5
        results.real_measurements[f"classifier {feature}"] = ratings - 2.5
        results.real_measurements[f"decoded judge {feature}"] = -ratings
    rows = ceiling_table(replace(results, real=real)).rows
    assert rows.keys() == {"malignancy, AUC ≥ 3", "malignancy, AUC ≥ 4", "texture, Spearman"}
    for row, worst in zip(rows.values(), (0, 0, -1), strict=True):
        means = [row["judge"]["mean"], row["guiding classifier"]["mean"], row["one reader by the others"]]
        assert means == pytest.approx([1, 1, 1])
        assert row["judge, through the autoencoder"]["mean"] == pytest.approx(worst)
        assert row["deviation between readers"] == 0


def test_a_dataset_without_readers_says_so(results, monkeypatch):
    monkeypatch.setattr(judge_tables, "NODULE_FEATURES", ("texture",))
    results.real_measurements["decoded judge texture"] = np.zeros(8)
    row = ceiling_table(results).rows["texture, Spearman"]
    assert row["one reader by the others"] == row["deviation between readers"] == "not in the data"
