"""Usefulness, diversity and memorisation of synthetic nodules, through the command lines."""

import json

import numpy as np
import pytest
from datasets import load_dataset

from ..conftest import tiny_pipeline

pytest.importorskip("torchmetrics", reason="torchmetrics (the extra eval) is not installed")

ARMS = (
    "real alone",
    "augmentation",
    "oversampling",
    "unguided synthetic",
    "guided synthetic",
    "augmentation + guided synthetic",
)

pytestmark = pytest.mark.slow


@pytest.fixture
def common(tmp_path, dataset):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    flags = [
        "--pretrained_model_name_or_path",
        tmp_path / "model",
        "--dataset_name",
        dataset,
        "--output_dir",
        tmp_path / "out",
    ]
    return [*flags, "--num_inference_steps", 1]


def test_every_arm_is_trained_and_tested_once(tmp_path, train, common):
    flags = ["--num_synthetic", 4, "--fractions", 1, "--max_train_steps", 60, "--train_batch_size", 8, "--seeds", 0]
    train("evaluate_usefulness.py", *common, *flags)
    report = json.loads((tmp_path / "out" / "usefulness.json").read_text())
    results = {(entry["arm"], entry["fraction"]): entry for entry in report["results"]}
    alone = {("unguided synthetic alone", 0), ("guided synthetic alone", 0)}
    assert results.keys() == {(arm, 1) for arm in ARMS} | alone
    # the brighter a nodule of this dataset, the more malignant it is, and the tested ones are those of the training
    assert results["real alone", 1]["auc"]["mean"] > 0.9
    assert results["guided synthetic", 1]["auc_minus_real_alone"]["mean"] == pytest.approx(
        results["guided synthetic", 1]["auc"]["mean"] - results["real alone", 1]["auc"]["mean"]
    )
    table = (tmp_path / "out" / "usefulness.md").read_text()
    assert "10 real training nodules; 4 synthetic ones" in table and "| augmentation " in table
    assert (tmp_path / "out" / "usefulness.png").is_file() and (tmp_path / "out" / "nodules.png").is_file()

    kept = {
        file: file.stat().st_mtime_ns
        for folder in ("images", "scores")
        for file in (tmp_path / "out" / folder).rglob("*.*")
    }
    assert len(kept) == 2 * 4 + 8
    train("evaluate_usefulness.py", *common, *flags)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_share_of_the_patients_gets_no_synthetic_nodules_of_others(tmp_path, train, common, dataset):
    splits = load_dataset(str(dataset))
    nodules = [number for number, kind in enumerate(splits["train"]["kind"]) if kind == "nodule"]

    def named(row, number):  # the synthetic nodules will be of the maps of "z"
        patient = "z" if number in (nodules[0], nodules[-1]) else "a"
        return {"patient_id": patient, "nodules": [{**nodule, "patient_id": patient} for nodule in row["nodules"]]}

    splits["train"] = splits["train"].map(named, with_indices=True, features=splits["train"].features)
    (tmp_path / "data").mkdir()
    for name, split in splits.items():
        split.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    flags = [
        "--num_synthetic",
        2,
        "--fractions",
        0.5,
        1,
        "--max_train_steps",
        3,
        "--train_batch_size",
        8,
        "--seeds",
        0,
    ]
    train("evaluate_usefulness.py", *common, "--dataset_name", tmp_path / "data", *flags)
    scores = {file.stem: np.load(file, allow_pickle=False) for file in (tmp_path / "out" / "scores").rglob("*.npy")}
    np.testing.assert_array_equal(
        scores["unguided-synthetic-0.5-seed-0"], scores["real-alone-0.5-seed-0"]
    )  # half: patient "a" alone
    assert not np.array_equal(scores["unguided-synthetic-1-seed-0"], scores["real-alone-1-seed-0"])


def test_diversity_and_memorisation(tmp_path, train, common):
    flags = [
        "--max_samples",
        3,
        "--seeds",
        0,
        1,
        "--feature_extractor",
        "efficientnet",
        "--perceptual",
        "efficientnet",
    ]
    train("evaluate_diversity.py", *common, *flags)
    report = json.loads((tmp_path / "out" / "diversity.json").read_text())
    assert report["diversity"]["unguided: two samples of one map"]["mean"] > 0
    memorised = report["memorisation"]
    # the unseen nodules of this dataset are the training nodules: the distance says so
    assert memorised["real nodules of unseen patients"]["pixels"]["median"] == 0
    assert memorised["unguided, maps of unseen patients"]["pixels"]["median"] > 0
    copies = memorised["copies: training nodules through the autoencoder"]
    assert 0 < copies["pixels"]["median"] and copies["nearest_is_own"] is not None
    among = memorised[
        "unguided, maps of unseen patients, among the unseen nodules"
    ]  # which are the training nodules here
    assert among["pixels"]["median"] > 0 and among["nearest_is_own"] is not None
    assert "perceptual distance efficientnet" in (tmp_path / "out" / "diversity.md").read_text()
    assert (tmp_path / "out" / "diversity.png").is_file() and (tmp_path / "out" / "closest.png").is_file()
    assert (
        len(list((tmp_path / "out" / "images").rglob("*.png"))) == 2 * 2 * 3 + 3
    )  # two arms and seeds of three maps; three training maps


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (
            "evaluate_usefulness.py",
            ("--fractions", 0),
            "--fractions is .*, but numbers above 0 and up to 1 are needed",
        ),
        ("evaluate_usefulness.py", ("--split", "train"), "--split train: the classifiers are tested on other nodules"),
        ("evaluate_usefulness.py", ("--num_synthetic", 0), "--num_synthetic is 0, but at least 1 is needed"),
        ("evaluate_diversity.py", ("--seeds", 1, 1), "--seeds is .*, but at least two different ones are needed"),
    ],
)
def test_wrong_flags_say_what_is_allowed(train, common, script, flags, message):
    with pytest.raises(SystemExit, match=message):
        train(script, *common, *flags)
