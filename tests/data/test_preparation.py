"""Scans to shards: workers that die, settings of a begun folder, checks of the arguments."""

import json
import os

import numpy as np
import pytest

from lsdm_diffusers.data.dataset import FEATURES, encode_row
from lsdm_diffusers.data.preparation import (
    Omission,
    PreparationError,
    begin_dataset,
    check_preparation,
    prepare_scans,
    worker_pool,
)
from lsdm_diffusers.data.scan import ScanJob
from lsdm_diffusers.io.dicom import SliceFile

from ..synthetic_dicom import thorax_hu


def row_or_death(job, index, clock):
    """A row, unless the job is the one whose decoder crashes the process."""
    if job.name == "b":
        os._exit(9)
    columns = {name: None for name in FEATURES if name not in ("image", "semantic_map", "nodules")}
    columns |= {"patient_id": job.patient_id, "nodules": []}
    return encode_row(thorax_hu()[:64, :64], np.zeros((64, 64), np.uint8), **columns)


def make_jobs(names):
    file = SliceFile("a.dcm", "patient", "scan", "1.1", 0.0, 1, 100)
    return [ScanJob(name, name, f"patient {name}", "train", {}, {0: file}, (), "signature") for name in names]


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_scan_alone(tmp_path):
    """A decoder crashes, or memory runs out: the other scans are made, and the run ends with an error that says so."""
    omission = Omission("patient d", "d", "", "", "left out before")
    with worker_pool(1) as executor, pytest.raises(PreparationError, match="1 scans failed") as raised:
        prepare_scans(make_jobs("abc"), row_or_death, tmp_path, executor, [omission])
    assert sorted(path.stem for path in (tmp_path / "scans").iterdir()) == ["a", "c"]
    assert "its worker was killed" in (tmp_path / "skipped.csv").read_text()
    assert json.loads((tmp_path / "splits.json").read_text())["train"] == ["patient a", "patient c"]
    summary = str(raised.value.prepared)
    assert "train: 2 patients, 2 slices, 0 of them with nodules" in summary
    assert "2 scans, slices and files left out" in summary and "2 slices in" in summary


def test_a_dataset_without_slices_is_an_error(tmp_path):
    with worker_pool(1) as executor, pytest.raises(PreparationError, match="has no slices"):
        prepare_scans([], row_or_death, tmp_path, executor, [])


def test_a_folder_goes_on_with_the_same_settings_only(tmp_path):
    settings = {"bit_depth": 16, "seed": 0}
    begin_dataset(tmp_path / "dataset", settings)
    (tmp_path / "dataset" / ".a.parquet.1.part").write_bytes(b"of a run that was killed")
    begin_dataset(tmp_path / "dataset", settings)
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == ["settings.json"]
    with pytest.raises(ValueError, match="`bit_depth` was 16 and is 8. Choose another folder"):
        begin_dataset(tmp_path / "dataset", {**settings, "bit_depth": 8})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.1, 0.1, 1), "`slice_fraction` is 0,"),
        ((1, 0.5, 0.5, 1), "`validation_fraction` is 0.5 and `test_fraction` 0.5"),
        ((1, 0.1, 0.1, 0), "`num_proc` is 0, but 1 or more are needed"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    check_preparation(1.0, 0.1, 0.1, 1)
    with pytest.raises(ValueError, match=message):
        check_preparation(*arguments)
