"""The evaluation of guidance through its command line: paired arms, kept and added to, and a report of them."""

import json

import numpy as np
import pytest
from datasets import DatasetDict, load_dataset

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier
from lsdm_diffusers.evaluation.images import read_hu
from lsdm_diffusers.evaluation.windows import nodule_windows, window_seed

from ..conftest import sample, tiny_pipeline

pytest.importorskip("torchmetrics", reason="torchmetrics (the extra eval) is not installed")
pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 (the extra eval) is not installed")
pytestmark = pytest.mark.slow

WINDOW, STEPS = 96, 2


@pytest.fixture
def patients(dataset, tmp_path):
    """The dataset with a patient for every row."""

    def named(row, number):
        return {
            "patient_id": f"p{number}",
            "nodules": [{**nodule, "patient_id": f"p{number}"} for nodule in row["nodules"]],
        }

    splits = {
        name: split.map(named, with_indices=True, features=split.features)
        for name, split in load_dataset(str(dataset)).items()
    }
    (tmp_path / "data" / "data").mkdir(parents=True)
    for name, split in DatasetDict(splits).items():
        split.to_parquet(tmp_path / "data" / "data" / f"{name}-00000-of-00001.parquet")
    return tmp_path / "data"


@pytest.fixture
def common(patients, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "lsdm")
    shuffled = NoduleClassifier(block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8)
    shuffled.save_pretrained(tmp_path / "shuffled")
    flags = ["--dataset_name", patients, "--pretrained_model_name_or_path", tmp_path / "lsdm"]
    flags += ["--output_dir", tmp_path / "out", "--window", WINDOW, "--num_inference_steps", STEPS]
    return [*flags, "--scales", 1, 8, 16]


def times(folder):
    return {file.relative_to(folder): file.stat().st_mtime_ns for file in folder.rglob("*.png")}


def test_arms_are_paired_kept_and_added_to(common, patients, tmp_path, train):
    images = tmp_path / "out" / "images"
    train("evaluate_control.py", *common, "--max_nodules", 1)
    first = times(images)
    # unguided, and two poles each of the label, 3 scales of contrast and of malignancy, 3 features and 2 shams
    assert len(first) == 25
    train("evaluate_control.py", *common, "--shuffled_classifier", tmp_path / "shuffled", "--full")
    assert first.items() <= times(images).items()  # what is kept is not made again
    names = {"0-0.png", "1-0.png"}  # of slices and their nodules
    made = {}
    for file in times(images):
        made.setdefault(file.parent.parent.name, set()).add(file.name)
    assert all(of_arm == names for of_arm in made.values())
    assert len(made) == 25 + 2 * 3 * 2 + 2  # besides: two more scales of 3 features, and the shuffled classifier
    assert {"guided-malignant-s16", "guided-texture-1-s32", "held-sham-benign-s16"} <= made.keys()

    # every arm is what the pipeline gives for the same noise
    pipe = LSDMGuidedPipeline.from_pretrained(tmp_path / "lsdm")
    pipe.set_progress_bar_config(disable=True)

    def kept(arm, window):
        (file,) = images.glob(f"*/*/window-{WINDOW}/{arm}/seed-0/{window.name}.png")
        return read_hu(file)

    for number, window in enumerate(nodule_windows(load_dataset(str(patients))["validation"], WINDOW)):
        assert window.patient_id == f"p{10 + number}"
        seeded = {"num_inference_steps": STEPS, "seed": window_seed(window, 0)}
        unguided = sample(pipe, window.semantic_map, **seeded)[0]
        np.testing.assert_allclose(unguided, kept("unguided", window), atol=1)
        guided = sample(pipe, window.semantic_map, {"texture": 5}, guidance_scale=8.0, **seeded)[0]
        np.testing.assert_allclose(guided, kept("guided-texture-5-s8", window), atol=1)
        asked = window.features({"malignancy": "benign"})
        contrast = sample(pipe, window.semantic_map, [asked], guidance_method="contrast", **seeded)[0]
        np.testing.assert_allclose(contrast, kept("contrast-benign-s1", window), atol=1)
        painted = np.where(window.mask(), 5, window.semantic_map)
        label = sample(pipe, painted, **seeded)[0]
        np.testing.assert_allclose(label, kept("label-benign-s0", window), atol=1)

    check_report(tmp_path / "out")


def check_report(folder):
    tables = {
        name: table["rows"] for name, table in json.loads((folder / "control.json").read_text())["tables"].items()
    }
    assert tables["Sham and shuffled guidance"].keys() >= {
        "sham + s=16",
        "held sham - s=16",
        "shuffled malignant s=16",
        "malignant s=16 minus benign",
        "sham + s=16 minus sham -",
    }
    dose = tables["Dose-response: malignancy"]
    assert dose.keys() >= {"unguided", "benign s=8", "Spearman of the mean over s, malignant"}
    sizes = tables["Area by the size that the map draws"]  # every nodule is in one class
    assert sum(int(number) for number in sizes["nodules"].values()) == 2
    areas = [value["mean"] * int(sizes["nodules"][name]) for name, value in sizes["benign s=8"].items()]
    assert sum(areas) / 2 == pytest.approx(dose["benign s=8"]["area [px]"]["mean"])
    transfers = {f"{feature}, s = {s}" for feature in ("texture", "spiculation", "lobulation") for s in (2, 8, 32)}
    assert transfers | {"malignancy, s = 16"} <= tables["Transfer"].keys()
    methods = {
        "label alone",
        *(f"contrast, s = {s}" for s in (0.5, 1, 2)),
        *(f"classifier, s = {s}" for s in (1, 8, 16)),
    }
    rows = tables["Guidance methods"]
    assert {f"malignancy, {method}" for method in methods} == {name for name in rows if name.startswith("malignancy")}
    assert rows["malignancy, contrast, s = 1"]["gain, judge"]["mean"] == pytest.approx(
        rows["malignancy, contrast, s = 1"]["gain / real"] * rows["malignancy, label alone"]["real difference"]
    )
    obedience = tables["Obedience to the drawn nodule"]
    assert obedience["real"]["Dice"]["mean"] > 0.9  # the real nodules lie where they are drawn
    text = (folder / "control.md").read_text()
    assert "n = 2 nodules of 2 patients" in text
    assert "not in the data" in text  # readers
    assert "The nodules lie in slices" not in text  # each nodule lies in a slice of its own patient
    pictures = ("dose", "matrix", "locality", "ladder", "controls")
    assert all((folder / f"{name}.png").is_file() for name in pictures)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--feature_scale", 4), r"--feature_scale is 4, but one of --scales \[1.0, 8.0, 16.0\] is needed"),
        (("--window", 64), "--window is 64, but at least 96 is needed"),
        (("--max_nodules", 0), "--max_nodules is 0, but at least 1 is needed"),
        (("--streaming",), "--streaming: nodules are drawn from all over the split"),
        (("--analyse_only",), "has no nodules to analyse; leave --analyse_only out"),
        (("--window", 128), "no slice of at least 128x128 pixels with a nodule"),
    ],
)
def test_wrong_flags_say_what_is_allowed(common, train, flags, message):
    with pytest.raises(SystemExit, match=message):
        train("evaluate_control.py", *common, *flags)


def test_a_folder_is_of_one_run(common, tmp_path, train):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"seed": "7"}')
    with pytest.raises(SystemExit, match=r"has what was made with .*seed 7 \(not 0\)"):
        train("evaluate_control.py", *common)
