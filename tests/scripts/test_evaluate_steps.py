"""The comparison of steps and schedulers through its command line."""

import json

import pytest
from datasets import load_dataset

from ..conftest import tiny_pipeline

pytest.importorskip("torchmetrics", reason="torchmetrics (the extra eval) is not installed")

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
        tmp_path / "steps",
    ]
    return [*flags, "--feature_extractor", "efficientnet", "--num_inference_steps", 1, 4, "--reference_steps", 20]


def test_more_steps_come_nearer_to_the_reference(tmp_path, train, common):
    train("evaluate_steps.py", *common, "--schedulers", "DDIM", "DPM++")
    report = json.loads((tmp_path / "steps" / "steps.json").read_text())
    results = report["results"]
    assert results.keys() == {
        "real slices",
        *(f"own, {n}" for n in (1, 4, 20)),
        *(f"{name}, {n}" for name in ("DDIM", "DPM++") for n in (1, 4)),
    }
    distance = {
        name: figures["hu_from_reference"]["mean"] for name, figures in results.items() if name != "real slices"
    }
    assert distance["own, 20"] == 0 and distance["own, 4"] < distance["own, 1"]
    assert distance["DDIM, 4"] == distance["own, 4"]  # the checkpoint's own is DDIM: the same noise, the same image
    assert distance["DPM++, 4"] < distance["DPM++, 1"]
    assert all(difference["mean"] == 0 for difference in report["minus_reference"]["own, 20"].values())
    assert (
        "features of efficientnet" in (tmp_path / "steps" / "steps.md").read_text()
        and (tmp_path / "steps" / "steps.png").is_file()
    )

    images = {file: file.stat().st_mtime_ns for file in (tmp_path / "steps" / "images").rglob("*.png")}
    assert len(images) == 2 * 7  # two slices list nodules
    train("evaluate_steps.py", *common, "--schedulers", "DDIM", "DPM++")
    assert {file: file.stat().st_mtime_ns for file in images} == images
    assert json.loads((tmp_path / "steps" / "steps.json").read_text()) == report  # the seconds are kept, too


def test_one_split_is_enough(tmp_path, train, dataset, common):
    (tmp_path / "only-test").mkdir()
    load_dataset(str(dataset), split="train").to_parquet(tmp_path / "only-test" / "test-00000-of-00001.parquet")
    only_test = ["--dataset_name", tmp_path / "only-test", "--split", "test"]
    train("evaluate_steps.py", *common, *only_test, "--num_inference_steps", 1, "--reference_steps", 2)
    assert "no HU distance and FID, because" in next(tmp_path.rglob("steps.md")).read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--split", "holdout"), "--split is holdout, but one of"),
        (("--max_samples", 0), "--max_samples is 0, but at least 1 is needed"),
        (("--num_inference_steps", 10, 0), "--num_inference_steps is 0, but at least 1 is needed"),
    ],
)
def test_wrong_flags_say_what_is_allowed(train, common, flags, message):
    with pytest.raises(SystemExit, match=message):
        train("evaluate_steps.py", *common, *flags)
