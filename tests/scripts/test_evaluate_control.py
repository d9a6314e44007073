"""The evaluation of guidance through its command line: paired arms, kept and added to, and a report of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import DatasetDict, load_dataset
from scipy.stats import wasserstein_distance

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier

from ..conftest import sample, tiny_pipeline

pytest.importorskip("torchmetrics", reason="torchmetrics (the extra eval) is not installed")
pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 (the extra eval) is not installed")


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
    NoduleClassifier(block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8).save_pretrained(
        tmp_path / "shuffled"
    )
    flags = [
        "--dataset_name",
        patients,
        "--pretrained_model_name_or_path",
        tmp_path / "lsdm",
        "--output_dir",
        tmp_path / "out",
    ]
    return [*flags, "--window", 96, "--num_inference_steps", 2, "--scales", 1, 8, 16]


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_arms_are_paired_kept_and_added_to(common, tmp_path, train):
    nodules = tmp_path / "out" / "nodules"
    train("evaluate_control.py", *common, "--max_nodules", 1)
    first = times(nodules)
    train("evaluate_control.py", *common, "--shuffled_classifier", tmp_path / "shuffled", "--full")
    assert first.items() <= times(nodules).items()  # what is there is not made again
    assert times(nodules).keys() == {
        f"{number:04d}-{arms}.npz" for number in (0, 1) for arms in ("main", "full", "shuffled")
    }

    # every arm is what the pipeline gives for the same noise
    pipe = LSDMGuidedPipeline.from_pretrained(tmp_path / "lsdm")
    pipe.set_progress_bar_config(disable=True)
    for number, file in enumerate(sorted(nodules.glob("*-main.npz"))):
        with np.load(file) as kept:
            hu = dict(zip(kept["arms"], kept["hu"], strict=True))
            labels = kept["semantic_map"]
            assert json.loads(str(kept["about"]))["patient_id"] == f"p{10 + number}"
            np.testing.assert_array_equal(kept["unguided_window"], hu["none"])  # the window is all that is kept here
        seeded = {"num_inference_steps": 2, "seed": number}
        np.testing.assert_allclose(sample(pipe, labels, **seeded)[0], hu["none"], atol=1)
        guided = sample(pipe, labels, {"texture": 5}, guidance_scale=8.0, **seeded)[0]
        np.testing.assert_allclose(guided, hu["texture 5 s=8"], atol=1)
    with np.load(nodules / "0000-shuffled.npz") as kept:
        assert list(kept["arms"]) == ["shuffled benign s=16", "shuffled malignant s=16"]

    report = json.loads((tmp_path / "out" / "control.json").read_text())["tables"]
    controls = report["Sham and shuffled guidance"]["rows"]
    assert {
        "sham + s=16",
        "held sham - s=16",
        "shuffled malignant s=16",
        "malignant s=16 minus benign",
        "sham + s=16 minus sham -",
    } <= controls.keys()
    assert report["Dose-response: malignancy"]["rows"].keys() >= {
        "none",
        "benign s=8",
        "Spearman of the mean over s, malignant",
    }
    sizes = report["Area by the size that the map draws"]["rows"]  # every nodule is in one class
    assert sum(int(number) for number in sizes["nodules"].values()) == 2
    areas = [value["mean"] * int(sizes["nodules"][name]) for name, value in sizes["benign s=8"].items()]
    assert sum(areas) / 2 == pytest.approx(
        report["Dose-response: malignancy"]["rows"]["benign s=8"]["area [px]"]["mean"]
    )
    transfers = {f"{feature}, s = {s}" for feature in ("texture", "spiculation", "lobulation") for s in (2, 8, 32)}
    assert transfers | {"malignancy, s = 16"} <= report["Transfer"]["rows"].keys()
    assert (
        report["Obedience to the drawn nodule"]["rows"]["real"]["Dice"]["mean"] > 0.9
    )  # the real nodules lie where they are drawn
    text = (tmp_path / "out" / "control.md").read_text()
    assert "n = 2 nodules of 2 patients" in text and "not in the data" in text
    assert all((tmp_path / "out" / f"{name}.png").is_file() for name in ("dose", "matrix", "locality", "ladder"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--feature_scale", 4), r"--feature_scale is 4, but one of --scales \[1.0, 8.0, 16.0\] is needed"),
        (("--window", 64), "--window is 64, but at least 96 is needed"),
        (("--streaming",), "--streaming: nodules are drawn from all over the split"),
        (("--analyse_only",), "has no nodules to analyse; leave --analyse_only out"),
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


@pytest.fixture
def report():
    """Twelve nodules of six patients whose judge gains half of what the guiding classifier gains, by malignancy alone; a sham gains nothing."""
    from lsdm_diffusers.evaluation.control.report import ControlReport

    generator = np.random.default_rng(0)
    nodules = [SimpleNamespace(about={"patient_id": f"p{i // 2}", "malignancy": 1 + 3 * (i % 2)}) for i in range(12)]
    noise, gains = generator.standard_normal(12), generator.uniform(1, 3, 12)
    signs = {"none": 0, "benign s=1": -1, "malignant s=1": 1}
    figures = {
        f"classifier {f}": {arm: noise + sign * gains * (f == "malignancy") for arm, sign in signs.items()}
        for f in ("malignancy", "texture")
    }
    figures |= {
        name.replace("classifier", "judge"): {arm: v / 2 for arm, v in of_arm.items()}
        for name, of_arm in figures.items()
    }
    figures["area_px"] = {arm: np.full(12, 50.0 + 10 * sign) for arm, sign in signs.items()}
    unit = np.array([-1.0, 1.0])
    of_real = dict.fromkeys(figures, unit)
    return ControlReport(
        nodules, figures, SimpleNamespace(patients=np.array(["p0", "p1"])), of_real, [1.0], [1.0], 1.0
    )


def test_transfer_is_the_ratio_of_gains(report, monkeypatch):
    monkeypatch.setattr("lsdm_diffusers.evaluation.control.report.NODULE_FEATURES", ("malignancy",))
    row = report.transfer().rows["malignancy, s = 1"]
    assert row["transfer ratio"] == {"mean": pytest.approx(0.5), "interval": pytest.approx([0.5, 0.5])}
    assert (
        row["gain, judge"]["mean"] == pytest.approx(row["gain, classifier"]["mean"] / 2)
        and row["gain, judge"]["interval"][0] > 0
    )
    assert report.gain("judge texture", "malignant s=1") == {"mean": 0, "interval": [0, 0]}


def test_true_and_opposite_arms_go_by_the_rating(report):
    area, malignant = report.figures["area_px"], np.arange(12) % 2 == 1
    np.testing.assert_array_equal(area["true s=1"], np.where(malignant, 60, 40))
    np.testing.assert_array_equal(area["opposite s=1"], np.where(malignant, 40, 60))


def test_areas_by_size_stand_beside_what_makes_real_nodules_malignant(report):
    """Drawn squares of 4 and 12 pixels of 0.7 mm, 3.2 and 9.5 mm across; real ones of the small are the denser the more benign."""
    mask = lambda edge: np.pad(np.ones((edge, edge), dtype=bool), (32 - edge) // 2)  # noqa: E731
    for number, nodule in enumerate(report.nodules):
        nodule.drawn = mask(4 if number < 4 else 12)
        nodule.about["pixel_spacing_mm"] = 0.7
    report.figures["area_px"]["real"] = np.where(np.arange(12) < 4, 20.0, 140.0)
    ratings = np.array([1.0, 2, 3, 4] * 2)
    report.real = SimpleNamespace(
        drawn=np.stack([mask(4)] * 4 + [mask(12)] * 4), spacing=np.full(8, 0.7), ratings={"malignancy": ratings}
    )
    signs = np.repeat([-1, 1], 4)
    report.of_real |= {
        "area_mm2": ratings,
        "mean_hu": signs * ratings,
        "margin_hu_per_mm": np.array([np.nan, *range(7)]),
    }
    rows = report.area_by_size().rows
    assert rows["nodules"] == {"< 6 mm": "4", "≥ 8 mm": "8"} and rows["real nodules of any map"] == {
        "< 6 mm": "4",
        "≥ 8 mm": "4",
    }
    assert rows["real"]["< 6 mm"]["mean"] == 20 and rows["malignant s=1"]["≥ 8 mm"]["mean"] == 60
    assert rows["Spearman of their mean HU and malignancy"] == pytest.approx({"< 6 mm": -1, "≥ 8 mm": 1})
    assert rows["Spearman of their margin and malignancy"]["< 6 mm"] == pytest.approx(1)


def test_the_ceiling_stands_beside_the_readers(report, monkeypatch):
    """Scores that are the rating in all but the decoded judge, which turns it round; two readers who agree."""
    monkeypatch.setattr("lsdm_diffusers.evaluation.control.report.NODULE_FEATURES", ("malignancy", "texture"))
    ratings = np.tile([1.0, 2, 3, 5], 5)
    entries = [{f"{feature}_ratings": [int(r), int(r)] for feature in ("malignancy", "texture")} for r in ratings]
    report.real = SimpleNamespace(
        ratings=dict.fromkeys(("malignancy", "texture"), ratings),
        entries=entries,
        patients=np.repeat(["a", "b", "c", "d", "e"], 4),
    )
    for feature in ("malignancy", "texture"):
        report.of_real |= {
            f"judge {feature}": ratings - 2.5,
            f"classifier {feature}": ratings - 2.5,
            f"decoded judge {feature}": -ratings,
        }
    rows = report.ceiling().rows
    assert rows.keys() == {"malignancy, AUC ≥ 3", "malignancy, AUC ≥ 4", "texture, Spearman"}
    for row, worst in zip(rows.values(), (0, 0, -1), strict=True):
        assert [
            row["judge"]["mean"],
            row["guiding classifier"]["mean"],
            row["one reader by the others"],
        ] == pytest.approx([1, 1, 1])
        assert (
            row["judge, through the autoencoder"]["mean"] == pytest.approx(worst)
            and row["deviation between readers"] == 0
        )


def test_distances_of_hu_histograms():
    from lsdm_diffusers.evaluation.control.report import BINS, hu_counts, hu_wasserstein, outside_three_deviations

    generator = np.random.default_rng(0)
    a, b = generator.normal(-300, 100, 5000), generator.normal(-100, 150, 5000)
    counts = [np.histogram(values, BINS)[0] for values in (a, b)]
    assert hu_wasserstein(*counts) == pytest.approx(wasserstein_distance(a, b), abs=4)
    assert hu_wasserstein(counts[0], 7 * counts[0]) == 0
    beyond = outside_three_deviations(counts[0])
    middle = (BINS[1:] + BINS[:-1]) / 2
    np.testing.assert_array_equal(beyond, np.abs(middle - a.mean()) > 3 * a.std())
    drawn = np.zeros((1, 64, 64), dtype=bool)
    drawn[0, 30:34, 30:34] = True
    regions = hu_counts(np.where(drawn, 40, -850), drawn)
    assert sum(counts.sum() for counts in regions.values()) == 64 * 64 and regions["nodule"].sum() == 16
    assert regions["nodule"][0, np.searchsorted(BINS, 40, side="right") - 1] == 16
