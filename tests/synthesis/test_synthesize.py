"""The console command `lsdm-synthesize`: rows that depend on their number alone, and shards that survive a kill."""

import csv
import json
import re
import signal
import threading
import time

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from lsdm_diffusers.data.dataset import decode_image
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.semantic_map import find_nodules
from lsdm_diffusers.synthesis import command, job, rows
from lsdm_diffusers.synthesis.maps import open_maps
from lsdm_diffusers.synthesis.recipe import lidc_nodules, make_recipe, read_recipe

from ..conftest import tiny_pipeline
from ..tiny_dataset import write_tiny_dataset

RECIPE = "rows_per_shard: 2\nnum_inference_steps: 1\nnodules_per_slice: {1: 0.5, 2: 0.5}\ndiameter_mm: [8, 20]\n"


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Four small maps with a lung each, one of them with a nodule."""
    folder = tmp_path_factory.mktemp("maps")
    for number in range(4):
        labels = np.zeros((96, 96), dtype=np.uint8)
        labels[4:92, 4:92] = 2
        labels[12:84, 10 + number : 80] = 4
        if number == 0:
            labels[40:48, 40:48] = 7
        np.save(folder / f"map-{number}.npy", labels)
    return folder


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def tiny(monkeypatch):
    for module in (command, job):
        monkeypatch.setattr(module, "load_pipeline", lambda *_: tiny_pipeline())


@pytest.fixture
def run(maps, recipe_file):
    def call(output, *more):
        command.main(["--maps", str(maps), "--recipe", str(recipe_file), "--output_dir", str(output), *map(str, more)])

    return call


def bytes_of(folder):
    return {path.name: pq.read_table(path).to_pylist() for path in sorted((folder / "data").glob("*.parquet"))}


def test_a_set_is_a_dataset_with_nodules_as_asked(tiny, run, tmp_path, capsys):
    run(tmp_path / "set", "--num_slices", 6)
    assert "6 slices in" in capsys.readouterr().out
    split = load_dataset(str(tmp_path / "set"), cache_dir=tmp_path / "cache")["train"]
    assert split["row"] == list(range(6)) and all(split["synthetic"])
    assert len(set(split["source"][:4])) == 4  # every map once before one comes again
    for row in split:
        labels = np.asarray(row["semantic_map"])
        assert decode_image(row["image"]).shape == labels.shape == (96, 96)
        nodules = find_nodules(labels)
        assert len(nodules) == len(row["nodules"]) in (1, 2)
        for nodule, entry in zip(nodules, row["nodules"], strict=True):
            assert entry["centroid_yx"] == pytest.approx(nodule.centroid_yx)
            assert nodule.label == SemanticLabel.for_malignancy(entry["malignancy"]) != 6
    assert (tmp_path / "set/failed.csv").read_text() == "row,reason\n"
    card = (tmp_path / "set/README.md").read_text()
    assert "All slices are synthetic" in card and "diameter_mm:" in card and (tmp_path / "set/samples.png").is_file()


def test_a_row_depends_on_its_number_alone(maps):
    recipe = make_recipe({**read_text(RECIPE), "num_slices": 8, "unguided": 0.5, "grain": [0.2, 0.8]})
    longer = make_recipe({**read_text(RECIPE), "num_slices": 50, "unguided": 0.5, "grain": [0.2, 0.8]})
    source = open_maps(str(maps), "train")
    plans = [rows.plan_row(recipe, source, row) for row in range(8)]
    for row in (7, 2, 5):
        again = rows.plan_row(longer, source, row)
        np.testing.assert_array_equal(again.labels, plans[row].labels)
        assert (again.seed, again.grain, again.guided) == (plans[row].seed, plans[row].grain, plans[row].guided)
    assert len({plan.seed for plan in plans}) == 8 and all(0.2 <= plan.grain <= 0.8 for plan in plans)
    assert {plan.guided for plan in plans} == {True, False}
    other = make_recipe({**read_text(RECIPE), "num_slices": 8, "seed": 1})
    assert not np.array_equal(rows.plan_row(other, source, 0).labels, plans[0].labels)


def read_text(text):
    import yaml

    return yaml.safe_load(text)


def test_sizes_and_ratings_are_those_of_lidc(maps):
    table = lidc_nodules()
    assert len(table["diameter_mm"]) > 1500 and set(table) >= {"malignancy", "spiculation", "lobulation", "texture"}
    source = open_maps(str(maps), "train")
    recipe = make_recipe({"num_slices": 200, "malignant": 0.3})
    entries = []
    for row in range(120):
        try:
            entries += [entry for _, entry in rows.plan_row(recipe, source, row).entries]
        except rows.RowFailed as error:
            assert "no place for a nodule" in str(error)
    labels = [int(SemanticLabel.for_malignancy(entry["malignancy"])) for entry in entries]
    assert set(labels) == {5, 7} and 0.15 < labels.count(7) / len(labels) < 0.45
    known = set(zip(*(table[name].tolist() for name in table), strict=True))
    assert all(tuple(entry[name] for name in table) in known for entry in entries)


def test_validation_has_patients_of_its_own(tiny, run, tmp_path, recipe_file, maps):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE + "validation: 0.34\n")
    run(tmp_path / "set", "--recipe", recipe, "--num_slices", 6)
    splits = load_dataset(str(tmp_path / "set"), cache_dir=tmp_path / "cache")
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "validation": 2}
    assert not set(splits["train"]["patient_id"]) & set(splits["validation"]["patient_id"])


def test_a_killed_run_goes_on_to_the_same_rows(tiny, run, tmp_path, monkeypatch):
    run(tmp_path / "whole", "--num_slices", 6)
    made, make = [], job.make_row

    def cut_off(*arguments):
        if len(made) == 3:  # in the middle of a shard
            raise KeyboardInterrupt
        made.append(arguments[3])
        return make(*arguments)

    monkeypatch.setattr(job, "make_row", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", "--num_slices", 6)
    assert len(bytes_of(tmp_path / "cut")) == 1  # whole shards alone
    monkeypatch.setattr(job, "make_row", lambda *arguments: made.append(arguments[3]) or make(*arguments))
    run(tmp_path / "cut", "--num_slices", 6)
    assert made == [0, 1, 2, 2, 3, 4, 5]
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    run(tmp_path / "cut", "--num_slices", 6)
    assert len(made) == 7
    with pytest.raises(SystemExit, match="holds a set of another recipe"):
        run(tmp_path / "cut", "--num_slices", 8)


def test_a_failing_row_is_named_and_costs_no_other(tiny, run, tmp_path, monkeypatch):
    make = job.make_row

    def fail(pipe, recipe, maps, row, strict):
        if row == 1:
            raise RuntimeError("out of\nmemory")
        return make(pipe, recipe, maps, row, strict)

    monkeypatch.setattr(job, "make_row", fail)
    run(tmp_path / "set", "--num_slices", 4)
    (failed,) = csv.DictReader((tmp_path / "set/failed.csv").read_text().splitlines())
    assert failed == {"row": "1", "reason": "RuntimeError: out of memory"}
    made = [row["row"] for shard in bytes_of(tmp_path / "set").values() for row in shard]
    assert made == [0, 2, 3]


def test_strict_leaves_out_slices_without_their_nodule(tiny, run, tmp_path, monkeypatch):
    seen = {"nodule_dice": 0.0, "diameter_error_mm": 0.0, "missed_nodules": 1.0}
    monkeypatch.setattr(rows, "nodule_obedience", lambda labels, *_: [seen] * len(find_nodules(labels)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    monkeypatch.setattr(rows, "GROUND_GLASS_BELOW", 0)
    run(tmp_path / "counted", "--num_slices", 2)
    assert [row["missed_nodules"] > 0 for row in bytes_of(tmp_path / "counted").popitem()[1]] == [True, True]
    run(tmp_path / "strict", "--num_slices", 2, "--strict")
    assert not bytes_of(tmp_path / "strict")
    assert "are not seen in the slice" in (tmp_path / "strict/failed.csv").read_text()


@pytest.mark.slow
def test_lost_workers_are_replaced_and_change_nothing(maps, recipe_file, tmp_path, monkeypatch):
    """Two of Ray's workers, of which one is killed at work, make what one process makes."""
    pytest.importorskip("ray")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a token there
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    flags = ["--maps", str(maps), "--recipe", str(recipe_file), "--num_slices", "8"]
    flags += ["--pretrained_model_name_or_path", str(tmp_path / "pipeline")]
    command.main([*flags, "--output_dir", str(tmp_path / "one")])
    killed = []

    def kill_one():
        for _ in range(600):
            for process in psutil.process_iter(["cmdline"]):
                if "ray::ShardWorker" in " ".join(process.info["cmdline"] or []):
                    time.sleep(0.5)
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.1)

    killer = threading.Thread(target=kill_one)
    killer.start()
    command.main([*flags, "--workers", "2", "--output_dir", str(tmp_path / "two")])
    killer.join()
    assert killed and bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


WRONG = {
    "workers": (["--workers", 0], "`--workers` is 0"),
    "no recipe": (["--recipe", "absent.yaml"], "no such file"),
    "no maps": (["--maps", "absent"], "no folder of maps and no dataset"),
    "slices": (["--num_slices", 0], "`num_slices` is 0"),
    "spacing": (["--pixel_spacing", 99], "pixel_spacing"),
    "checkpoint": (["--pretrained_model_name_or_path", "not here"], "neither a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_arguments_get_one_sentence_and_nothing_is_written(tiny, run, tmp_path, case):
    arguments, message = WRONG[case]
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "set", *arguments)
    assert re.search(message, str(end.value.code)) and "\n" not in str(end.value.code)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"colour": 1}, "`colour` is no part of a recipe"),
        ({"num_slices": 1.5}, "`num_slices` is 1.5"),
        ({"malignant": 2}, "`malignant` is 2"),
        ({"diameter_mm": [2, 9]}, "within 3..60"),
        ({"diameter_mm": "big"}, "a number or a pair"),
        ({"grain": [0.5, 0.2]}, "low <= high"),
        ({"nodules_per_slice": {1: 0.5}}, "sum to 0.5"),
        ({"nodules_per_slice": {"one": 1}}, "nodules_per_slice"),
        ({"guided_features": ["colour"]}, "guided_features"),
        ({"keep_nodules": 1}, "true or false"),
        ({"validation": 0.5, "num_slices": 4}, "two are needed"),
    ],
)
def test_a_bad_recipe_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(values)


def test_a_recipe_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1")
    (tmp_path / "b.yaml").write_text("- 1")
    for name, message in (("a.yaml", "is no YAML"), ("b.yaml", "names and values")):
        with pytest.raises(ValueError, match=message):
            read_recipe(tmp_path / name)


def test_whole_slices_of_a_dataset_are_taken(tmp_path, monkeypatch):
    write_tiny_dataset(tmp_path / "data")
    monkeypatch.setattr("lsdm_diffusers.synthesis.maps.MIN_EDGE", 32)
    source = open_maps(str(tmp_path / "data"), "train")
    assert len(source) > 0 and source[0].labels.ndim == 2 and source.digest() == source.digest()
    assert json.dumps(source.patients)
