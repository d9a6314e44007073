"""The training script of the classifiers through its command line, and its augmentation."""

import json

import numpy as np
import pytest
import torch
from datasets import load_dataset
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from lsdm_diffusers import NoduleClassifier
from lsdm_diffusers.hounsfield import hu_from_scaled, scaled_hu

from .conftest import SIZES, WEIGHTS_FILE, script_module

SCRIPT = "train_classifier.py"


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(train_kill_and_resume, dataset, vae):
    flags = "--feature malignancy --train_batch_size 4 --augmentation_views 9 --label_balance 0.5 --timestep_power 2 "
    flags += "--hu_thresholds -500 -100 --contrast_jitter 0.5 1.5 --sharpness_jitter 1 --label_smoothing 0.1"
    flags = ["--dataset_name", dataset, "--pretrained_vae", vae, *flags.split()]
    folder = train_kill_and_resume(SCRIPT, flags)
    config = NoduleClassifier.from_pretrained(folder).config
    assert config.feature == "malignancy" and config.hu_thresholds == [-500, -100]
    figures = json.loads((folder / "validation.json").read_text())
    assert figures["t20"].keys() == {"auc_ge3", "auc_ge4", "accuracy_ge3", "ece"}


def test_a_classifier_begins_with_the_weights_of_another_feature(tmp_path, train, dataset, vae):
    flags = ["--dataset_name", dataset, "--pretrained_vae", vae, "--train_batch_size", 2]
    flags += ["--augmentation_views", 1, "--max_train_steps", 1]
    malignancy, spiculation = tmp_path / "malignancy", tmp_path / "spiculation"
    train(SCRIPT, *flags, "--feature", "malignancy", "--output_dir", malignancy)
    flags += ["--pretrained_classifier", malignancy, "--learning_rate", 0, "--adam_weight_decay", 0]
    train(SCRIPT, *flags, "--feature", "spiculation", "--output_dir", spiculation)
    before, after = load_file(malignancy / WEIGHTS_FILE), load_file(spiculation / WEIGHTS_FILE)
    assert after["head.weight"].shape[0] == 1
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("head."))


@pytest.mark.slow
def test_shuffled_labels_change_the_weights_but_not_the_validation(tmp_path, train, stage_flags):
    flags = [*stage_flags(SCRIPT), "--max_train_steps", 2]

    def run(name, learning_rate, *more):
        train(SCRIPT, *flags, "--learning_rate", learning_rate, *more, "--output_dir", tmp_path / name)

    run("unmoved", 0)
    run("unmoved-shuffled", 0, "--shuffle_labels")
    run("moved", 1e-3)
    run("moved-shuffled", 1e-3, "--shuffle_labels")
    figures = [json.loads((tmp_path / name / "log.jsonl").read_text()) for name in ("unmoved", "unmoved-shuffled")]
    assert figures[0] | {"seconds": 0} == figures[1] | {"seconds": 0}  # equal weights
    true, shuffled = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("moved", "moved-shuffled"))
    assert any(not torch.equal(true[name], shuffled[name]) for name in true)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--augmentation_views", 0), "--augmentation_views is 0, but at least 1 is needed"),
        (("--contrast_jitter", 1.5, 0.5), r"--contrast_jitter is \[1.5, 0.5\], but 0 < LOW <= HIGH is needed"),
        (("--sharpness_jitter", -1), "--sharpness_jitter is -1.0, but at least 0 is needed"),
        (("--label_smoothing", 2), r"--label_smoothing is 2.0, but 0..1 is needed"),
        (
            ("--label_smoothing", 0.1, "--objective", "regression"),
            "--label_smoothing is 0.1, but --objective regression has no classes to smooth",
        ),
    ],
)
def test_wrong_flags_say_what_is_allowed(tmp_path, train, stage_flags, flags, message):
    with pytest.raises(SystemExit, match=message):
        train(SCRIPT, *stage_flags(SCRIPT), "--output_dir", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_weights_of_other_sizes_are_refused(tmp_path, train, stage_flags):
    NoduleClassifier(block_out_channels=(24, 48)).save_pretrained(tmp_path / "classifier")
    flags = [*stage_flags(SCRIPT), "--pretrained_classifier", tmp_path / "classifier"]
    with pytest.raises(SystemExit, match="has other sizes than the flags ask for"):
        train(SCRIPT, *flags, "--output_dir", tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, train, dataset, vae):
    broken = AutoencoderKL.from_pretrained(vae)
    broken.decoder.conv_out.bias.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "vae")
    flags = ["--dataset_name", dataset, "--pretrained_vae", tmp_path / "vae", *SIZES[SCRIPT]]
    with pytest.raises(RuntimeError, match="The loss is nan at step 0; the last good checkpoint is in"):
        train(SCRIPT, *flags, "--max_train_steps", 2, "--output_dir", tmp_path / "run")


@pytest.mark.parametrize(
    ("split", "nodules", "message"),
    [
        ("train", {"malignancy": None}, r"10 of 10 nodules in the split train without a rating 1..5 of malignancy"),
        ("validation", {"malignancy": 0.0}, r"10 of 10 nodules in the split validation without a rating 1..5"),
        ("validation", None, "no nodules in the split validation"),
    ],
)
def test_a_classifier_needs_ratings_and_says_so_first(tmp_path, train, dataset, split, nodules, message):
    def changed(row):
        return {"nodules": [] if nodules is None else [entry | nodules for entry in row["nodules"]]}

    splits = load_dataset(str(dataset))
    splits[split] = splits[split].map(changed, features=splits[split].features)
    if nodules is None:
        splits[split] = splits[split].filter(lambda kind: kind != "nodule", input_columns="kind")
    (tmp_path / "unrated").mkdir()
    for name, rows in splits.items():
        rows.to_parquet(tmp_path / "unrated" / f"{name}-00000-of-00001.parquet")
    flags = [*SIZES["train_classifier.py"], "--dataset_name", tmp_path / "unrated"]
    flags += ["--pretrained_vae", tmp_path / "none", "--output_dir", tmp_path / "out"]  # it is not even looked for
    with pytest.raises(SystemExit, match=message):
        train("train_classifier.py", *flags)
    assert not (tmp_path / "out").exists()


def test_jitter_changes_contrast_against_lung_and_sharpness():
    jittered = script_module("train_classifier").jittered
    generator = np.random.default_rng(0)
    hu = np.full((64, 16, 16), -850.0)
    hu[:, 4:12, 4:12] = -350.0  # 500 HU above lung
    hu[:, 0] = -1000.0
    crops = scaled_hu(hu).astype(np.float32)
    np.testing.assert_array_equal(jittered(crops, (1, 1), 0, generator), crops)
    changed = hu_from_scaled(jittered(crops, (0.5, 1.5), 0, generator))
    contrast = changed[:, 8, 8] + 850
    assert contrast.min() > 249.9 and contrast.max() < 750.1 and contrast.std() > 100
    np.testing.assert_allclose(changed[:, :3, :], hu[:, :3, :], atol=0.01)  # lung and air stay
    steps = np.abs(np.diff(jittered(crops, (1, 1), 1, generator)[:, 8], axis=1)).max(axis=1)
    before = np.abs(np.diff(crops[0, 8])).max()
    assert steps.min() < 0.8 * before and steps.max() > 1.2 * before


def test_eight_views_are_all_flips_and_turns():
    flipped_and_turned = script_module("train_classifier").flipped_and_turned
    crop = np.arange(9).reshape(1, 3, 3)
    views = {flipped_and_turned(crop, view).tobytes() for view in range(8)}
    assert len(views) == 8
    np.testing.assert_array_equal(flipped_and_turned(crop, 0), crop)
    np.testing.assert_array_equal(flipped_and_turned(crop, 13), flipped_and_turned(crop, 5))


def test_label_balance_evens_out_the_ratings():
    drawing_probabilities = script_module("train_classifier").drawing_probabilities
    ratings = np.array([1, 1, 1, 4, 3.5])  # 3.5 is rounded to 4
    np.testing.assert_allclose(drawing_probabilities(ratings, 0.0), np.full(5, 0.2))
    np.testing.assert_allclose(drawing_probabilities(ratings, 1.0), [1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4])
