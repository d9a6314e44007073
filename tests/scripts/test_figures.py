"""The figures through their command line: all are drawn, and their images are made once."""

import pytest

from ..conftest import tiny_pipeline

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def common(tmp_path, dataset, model):
    flags = [
        "--pretrained_model_name_or_path",
        model,
        "--dataset_name",
        dataset,
        "--output_dir",
        tmp_path / "figures",
        "--num_maps",
        1,
    ]
    return [*flags, "--window", 96, "--min_area", 10, "--num_inference_steps", 1, "--scales", 1, 8]


def test_every_figure_is_drawn_and_images_are_made_once(tmp_path, train, common, model):
    train("figures.py", *common, "--baselines", f"LDM={model}")
    figures = sorted(file.name for file in (tmp_path / "figures").glob("*.png"))
    assert figures == [f"figure-5.{number}.png" for number in range(1, 10)]
    captions = (tmp_path / "figures" / "figures.md").read_text()
    assert (
        all(f"(thesis, Fig. 5.{number})" in captions for number in range(1, 10))
        and "DDIMScheduler, 1 steps" in captions
    )

    images = {file: file.stat().st_mtime_ns for file in (tmp_path / "figures" / "images").rglob("*.png")}
    # A slice unguided (LDM is LSDM here) and guided. Nodules: unguided; 4 features alone and 2 orders; 2 + 3 * 5
    # ratings; 2 more of the ladder at s = 1.
    assert len(images) == 2 + 1 + 6 + 17 + 2
    train("figures.py", *common, "--which", "5.9")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "figures" / "images").rglob("*.png")} == images


def test_a_figure_of_a_classifier_needs_it(tmp_path, train, common):
    tiny_pipeline(malignancy_classifier=None).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="--which has 5.8, but the pipeline has no malignancy_classifier"):
        train("figures.py", *common, "--which", "5.8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--window", 32), "--window is 32, but at least the 64 pixels"),
        (("--min_area", 5000), "no nodules of --min_area 5000 pixels in --window 96"),
        (("--split", "holdout"), "--split is holdout, but one of"),
    ],
)
def test_wrong_flags_say_what_is_allowed(train, common, flags, message):
    with pytest.raises(SystemExit, match=message):
        train("figures.py", *common, *flags)
