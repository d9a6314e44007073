"""The evaluation through its command line: tables, arms, images made once."""

import json
import runpy

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from PIL import Image
from scipy.stats import wasserstein_distance

from lsdm_diffusers.data.dataset import decode_image
from lsdm_diffusers.evaluation.images import read_hu
from lsdm_diffusers.evaluation.metrics import paired_metrics
from lsdm_diffusers.hounsfield import scaled_hu
from lsdm_diffusers.labels import SemanticLabel

from ..conftest import TRAINING, tiny_pipeline
from .conftest import launch

pytest.importorskip("torchmetrics", reason="torchmetrics (the extra eval) is not installed")


@pytest.fixture
def models(tmp_path):
    """A whole pipeline, and one without classifiers."""
    whole = tiny_pipeline()
    whole.save_pretrained(tmp_path / "lsdm")
    tiny_pipeline(
        **{f"{f}_classifier": None for f in ("malignancy", "lobulation", "spiculation", "texture")}
    ).save_pretrained(tmp_path / "ldm")
    return tmp_path / "lsdm", tmp_path / "ldm"


@pytest.mark.slow
def test_tables_of_models_and_arms(tmp_path, train, dataset, models):
    common = [
        "--dataset_name",
        dataset,
        "--feature_extractor",
        "efficientnet",
        "--num_inference_steps",
        2,
        "--output_dir",
        tmp_path / "out",
    ]
    common += ["--pretrained_model_name_or_path", models[0], f"plain={models[1]}", "--arms", "none", "malignancy"]
    train("evaluate.py", *common, "--seeds", 0)
    images = sorted((tmp_path / "out" / "images").rglob("*.png"))
    assert len(images) == 3 * 2  # lsdm, lsdm + malignancy and plain; two slices list nodules
    times = [image.stat().st_mtime_ns for image in images]
    train("evaluate.py", *common, "--seeds", 0, 1)
    assert [image.stat().st_mtime_ns for image in images] == times  # no image is made twice
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        report["results"].keys() == {"real slices", "lsdm", "lsdm + malignancy", "plain"}
        and report["feature_extractor"] == "efficientnet"
    )
    assert report["dataset"] == dataset.name and report["split"] == "validation"
    assert report["results"]["lsdm"]["fid"]["deviation"] > 0  # over seeds
    assert report["results"]["lsdm"]["nodule_fid"] != report["results"]["lsdm + malignancy"]["nodule_fid"]
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| fid ↓ " in table and "features of efficientnet" in table and "| nodule_dice ↑ " in table
    index = yaml.safe_load((tmp_path / "out" / "model-index-lsdm+malignancy.yml").read_text())["model-index"][0]
    figures = {m["type"]: m["value"] for m in index["results"][0]["metrics"]}
    assert figures["ssim"] == pytest.approx(report["results"]["lsdm + malignancy"]["ssim"]["mean"], abs=1e-4)
    assert (tmp_path / "out" / "samples.png").is_file() and (tmp_path / "out" / "nodules.png").is_file()

    # the figures are those of the images that were kept: SSIM and lung densities of seed 0 and 1, by hand
    rows = load_dataset(str(dataset), split="validation").filter(lambda kind: kind != "nodule", input_columns="kind")
    real = np.stack([scaled_hu(decode_image(row["image"])) for row in rows])
    is_lung = np.stack([np.array(row["semantic_map"]) for row in rows]) == SemanticLabel.LUNG
    by_seed, distances = [], []
    for seed in (0, 1):
        files = sorted((tmp_path / "out" / "images").glob(f"plain-*/*/none-no/seed-{seed}/*.png"))
        made = np.stack([scaled_hu(decode_image(Image.open(file))) for file in files])
        distances.append(wasserstein_distance(real[is_lung], made[is_lung]) / real[is_lung].std())
        by_seed.append(
            paired_metrics(*(torch.from_numpy(images)[:, None] for images in (real, made)))["ssim"].mean().item()
        )
    assert report["results"]["plain"]["ssim"]["mean"] == pytest.approx(np.mean(by_seed), abs=1e-6)
    assert report["results"]["plain"]["hu_distance_lung"]["mean"] == pytest.approx(np.mean(distances), rel=1e-4)


@pytest.fixture
def dataset_with_table(tmp_path, dataset):
    """A third split, whose slices lie on a table: eight bright rows below the body, which the map calls background."""

    def on_table(row):
        labels, image = np.array(row["semantic_map"]), np.array(row["image"])
        labels[88:], image[88:] = 0, 1500
        return {"semantic_map": Image.fromarray(labels), "image": Image.fromarray(image)}

    splits = load_dataset(str(dataset))
    splits["test"] = splits["validation"].filter(lambda kind: kind != "nodule", input_columns="kind")
    splits["test"] = splits["test"].map(on_table, features=splits["test"].features)
    (tmp_path / "with-table").mkdir()
    for name, rows in splits.items():
        rows.to_parquet(tmp_path / "with-table" / f"{name}-00000-of-00001.parquet")
    return tmp_path / "with-table"


@pytest.mark.slow
def test_a_split_of_any_name_without_its_table(tmp_path, train, dataset_with_table, models):
    common = ["--dataset_name", dataset_with_table, "--feature_extractor", "efficientnet", "--num_inference_steps", 1]
    common += ["--pretrained_model_name_or_path", models[1], "--output_dir", tmp_path / "out"]
    train("evaluate.py", *common, "--split", "test", "--blank_background", "--sample_batch_size", 2)
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "split test" in report["setting"] and report["setting"].endswith("without table and clothes")
    assert "deviation" not in report["results"]["ldm"]["ssim"]  # of one seed
    rows = load_dataset(str(dataset_with_table), split="test")
    real, made = (
        torch.from_numpy(np.stack([scaled_hu(hu) for hu in slices]))[:, None]
        for slices in (
            [decode_image(row["image"]) for row in rows],
            [read_hu(file) for file in sorted((tmp_path / "out" / "images").rglob("*.png"))],
        )
    )
    real[:, :, 91:], made[:, :, 91:] = -1, -1  # three rows of the table are as near as skin
    expected = paired_metrics(real, made)
    assert report["results"]["ldm"]["ssim"]["mean"] == pytest.approx(expected["ssim"].mean().item(), abs=1e-6)
    assert report["results"]["ldm"]["psnr"]["mean"] == pytest.approx(expected["psnr"].mean().item(), abs=1e-5)
    with pytest.raises(SystemExit, match=r"has what was made with split test \(not validation\); take another folder"):
        train("evaluate.py", *common)


@pytest.fixture
def only_test(tmp_path, dataset):
    """A dataset whose only split is "test", as preparing a single patient may give it."""
    (tmp_path / "only-test").mkdir()
    load_dataset(str(dataset), split="train").to_parquet(tmp_path / "only-test" / "test-00000-of-00001.parquet")
    return tmp_path / "only-test"


@pytest.mark.slow
def test_one_split_is_enough_and_the_report_says_what_is_missing_and_uncertain(tmp_path, train, only_test, models):
    common = ["--dataset_name", only_test, "--split", "test", "--feature_extractor", "efficientnet"]
    common += ["--num_inference_steps", 1, "--pretrained_model_name_or_path", models[1]]
    train("evaluate.py", *common, "--output_dir", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert not results["real slices"].keys() & {"fid", "kid", "nodule_fid", "hu_distance"}
    assert results["real slices"]["nodule_dice"]["mean"] > 0 and results["ldm"]["fid"]["mean"] > 0
    text = (tmp_path / "out" / "results.md").read_text()
    assert "left out, because the dataset has no other split" in text
    assert "**Few images:** FID and KID compare 2 slices and 2 nodule crops. With fewer than 2048 images" in text
    with pytest.raises(SystemExit, match="--max_train_samples is 3, but the dataset .* has no split train"):
        train("evaluate.py", *common, "--output_dir", tmp_path / "other", "--max_train_samples", 3)


def test_slices_without_nodules_are_refused_before_anything_is_loaded(tmp_path, train, only_test, models, monkeypatch):
    rows = load_dataset(str(only_test), split="test")
    rows = rows.map(lambda row: {"nodules": []}, features=rows.features)
    rows.to_parquet(only_test / "test-00000-of-00001.parquet")

    def load_extractor(name):
        pytest.fail("the features were loaded first")

    monkeypatch.setattr("lsdm_diffusers.evaluation.metrics.feature_extractor", load_extractor)
    common = ["--dataset_name", only_test, "--split", "test", "--pretrained_model_name_or_path", models[1]]
    with pytest.raises(SystemExit, match=r"--split test of the dataset .* has 0 slice\(s\) with nodules to evaluate"):
        train("evaluate.py", *common, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("has_others", [False, True])
def test_notes_explain_why_real_slices_can_lose_and_when_there_are_enough_images(has_others):
    notes_of = runpy.run_path(str(TRAINING / "evaluate.py"))["report_notes"]
    results = {"real slices": {"fid": {"mean": 1.0}}} if has_others else {"real slices": {}}
    few, many = (" ".join(notes_of(results, count, 4000)) for count in (2047, 2048))
    assert "Few images" in few and "Few images" not in many
    assert ("lower `nodule_fid`" in many) == has_others and "higher `nodule_dice`" in many


@pytest.mark.slow
def test_two_processes_share_the_images(tmp_path, dataset, models):
    common = ["--dataset_name", dataset, "--feature_extractor", "efficientnet", "--num_inference_steps", 1]
    common += ["--pretrained_model_name_or_path", models[1], "--seeds", 0, 1, "--output_dir", tmp_path / "out"]
    launch("evaluate.py", tmp_path, *common, num_processes=2)
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 2 * 2
    assert json.loads((tmp_path / "out" / "results.json").read_text())["results"].keys() == {"real slices", "ldm"}


@pytest.mark.slow
def test_other_weights_under_the_same_name_get_images_of_their_own(tmp_path, train, dataset):
    common = [
        "--dataset_name",
        dataset,
        "--feature_extractor",
        "efficientnet",
        "--num_inference_steps",
        1,
        "--output_dir",
        tmp_path / "out",
    ]
    pipe = tiny_pipeline()
    for bias in (0.0, 0.5):
        pipe.vae.decoder.conv_out.bias.data.fill_(bias)
        pipe.save_pretrained(tmp_path / "model")
        train("evaluate.py", *common, "--pretrained_model_name_or_path", tmp_path / "model")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--split", "holdout"), "--split is holdout, but one of"),
        (("--scheduler", "NoScheduler"), "`scheduler` is NoScheduler, but a scheduler class of diffusers is needed"),
        (("--pretrained_model_name_or_path", "MODEL", "MODEL"), "twice; tell them apart by NAME=PATH"),
    ],
)
def test_wrong_flags_say_what_is_allowed(tmp_path, train, dataset, models, flags, message):
    flags = [models[1] if flag == "MODEL" else flag for flag in flags]
    common = [
        "--pretrained_model_name_or_path",
        models[0],
        "--dataset_name",
        dataset,
        "--feature_extractor",
        "efficientnet",
    ]
    with pytest.raises(SystemExit, match=message):
        train("evaluate.py", *common, "--num_inference_steps", 1, "--output_dir", tmp_path / "out", *flags)
