"""The programs of examples/ and the notebook run as a newcomer starts them, with few steps."""

import csv
import runpy
import sys

import datasets
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.hounsfield import HU_MIN
from lsdm_diffusers.io.export import save_dicom

from .conftest import ROOT

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
STEPS = 2


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a program in this process, which spares the imports, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        (program,) = EXAMPLES.glob(f"{name}_*.py")
        monkeypatch.setattr(sys, "argv", [str(program), *map(str, arguments)])
        runpy.run_path(str(program), run_name="__main__")
        return tmp_path / "example-output" / name

    return run


@pytest.fixture
def small_map(tmp_path):
    """256x256 pixels of the shipped map with its nodule, which take a quarter of the time."""
    labels = np.asarray(Image.open(example_map()))[224:480, 256:512]
    path = tmp_path / "small-map.png"
    Image.fromarray(labels).save(path)
    return path


def fast(*arguments):
    return ("--num_inference_steps", STEPS, *arguments)


def test_each_program_shows_how_it_is_started():
    assert [path.name[:2] for path in PROGRAMS] == [f"{number:02d}" for number in range(1, 8)]
    for path in PROGRAMS:
        assert f"python examples/{path.name}" in path.read_text()


def test_slice_from_map(run):
    folder = run("01", *fast())
    hu = np.load(folder / "slice.npy")
    assert hu.dtype == np.int16 and hu.shape == (512, 512) and hu.min() < -900
    assert Image.open(folder / "slice-lung.png").size == (512, 512)
    assert (np.asarray(Image.open(folder / "semantic_map.png")) == np.asarray(Image.open(example_map()))).all()


def test_guide_nodules(run, capsys, small_map):
    folder = run("02", "--semantic_map", small_map, *fast())
    printed = capsys.readouterr().out
    means = [line.split(" HU")[0].split()[-1] for line in printed.splitlines() if "mean of the largest nodule" in line]
    assert len(means) == 6 and len(set(means)) > 1
    assert Image.open(folder / "close-ups.png").width == 6 * Image.open(folder / "close-ups.png").height


def test_draw_a_nodule(run, capsys, small_map):
    folder = run("03", "--semantic_map", small_map, "--centre", 60, 60, *fast())
    assert "had 1 nodule(s), now it has 2" in capsys.readouterr().out
    drawn = np.asarray(Image.open(folder / "map-with.png")) != np.asarray(Image.open(folder / "map-without.png"))
    change = np.load(folder / "slice-with.npy").astype(int) - np.load(folder / "slice-without.npy")
    assert change[drawn].mean() > 100 > np.abs(change[~drawn]).mean()


def test_a_nodule_outside_the_lung_is_refused_in_one_line(run):
    with pytest.raises(SystemExit, match="lie in lung"):
        run("03", "--centre", 250, 30, *fast())


def test_map_from_a_synthetic_ct(run, capsys):
    folder = run("04", *fast())
    assert (folder / "synthetic.dcm").is_file()
    lung = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dice_lung")]
    assert float(lung[0].split()[-1]) > 0.9


def test_map_from_a_ct_of_another_size(run, tmp_path):
    """Sides that are no multiple of 32 are cut, and what the user named is read."""
    hu = np.full((140, 170), HU_MIN, np.int16)
    hu[20:120, 20:150] = 40
    save_dicom(hu, tmp_path / "small.dcm")
    folder = run("04", "--dicom", tmp_path / "small.dcm", *fast())
    assert Image.open(folder / "map.png").size == (160, 128)
    assert not (folder / "synthetic.dcm").exists()


def test_change_an_outline(run, small_map):
    folder = run("06", "--semantic_map", small_map, "--maps_only")
    maps_only = Image.open(folder / "outlines.png").size
    run("06", "--semantic_map", small_map, *fast())
    assert Image.open(folder / "outlines.png").height > 1.5 * maps_only[1]


def test_edit_a_slice(run, capsys):
    folder = run("07", *fast())
    lines = [line for line in capsys.readouterr().out.splitlines() if "changed outside the mask" in line]
    assert len(lines) == 4 and all(" 0 pixels changed outside the mask" in line for line in lines)
    before, inserted = np.load(folder / "before.npy"), np.load(folder / "inserted.npy")
    assert before.dtype == inserted.dtype == np.int16 and (before != inserted).any()


def test_paired_dataset(run, small_map, tmp_path, monkeypatch):
    folder = run("05", "--semantic_maps", small_map, "--seeds", 0, 1, *fast())
    with open(folder / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["malignancy"] for row in rows] == ["benign", "malignant"] * 2
    benign, malignant = (np.asarray(Image.open(folder / row["image_file_name"])).astype(int) for row in rows[:2])
    maps = [np.asarray(Image.open(folder / row["semantic_map_file_name"])) for row in rows[:2]]
    nodule = maps[0] != maps[1]
    assert set(maps[0][nodule]) == {5} and set(maps[1][nodule]) == {7}
    assert np.abs(benign - malignant)[nodule].mean() > 5 * np.abs(benign - malignant)[~nodule].mean()

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    split = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert sorted(split["malignancy"]) == ["benign", "benign", "malignant", "malignant"]
    assert split[0]["image"].size == split[0]["semantic_map"].size == (256, 256)


def test_notebook(tmp_path):
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    replaced = 0
    for cell in notebook.cells:
        if "NUM_STEPS = 25" in cell.source:
            cell.source = cell.source.replace("NUM_STEPS = 25", f"NUM_STEPS = {STEPS}")
            replaced += 1
    assert replaced == 1
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "quickstart-output" / "slice.dcm").is_file()
