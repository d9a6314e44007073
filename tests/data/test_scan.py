"""One scan to its shard and record: slices left out, records without their shard, patients of another split."""

import json
from dataclasses import replace

import numpy as np

from lsdm_diffusers.data.dataset import FEATURES, encode_row
from lsdm_diffusers.data.scan import ScanJob, is_finished, prepare_scan
from lsdm_diffusers.io.dicom import DicomError, Orientation, SliceFile

FILE = SliceFile("a.dcm", "patient", "scan a", "1.1", 0.0, 1, 100)


def make_row(job, index, clock):
    """A row with one nodule for even indices; 3 is no CT slice, and 5 breaks the program."""
    if index == 3:
        raise DicomError("modality 'MR' instead of CT")
    if index == 5:
        raise RuntimeError("a bug")
    columns = {name: None for name in FEATURES if name not in ("image", "semantic_map")}
    nodule = {name: None for name in FEATURES["nodules"].feature}
    nodule |= {"nodule_id": "1-0", "malignancy": 4.0, "lobulation": 1.0, "spiculation": 2.0, "texture": 5.0}
    columns |= {"slice_index": index, "nodules": [nodule] if index % 2 == 0 else []}
    with clock("encode"):
        return encode_row(np.zeros((64, 64)), np.zeros((64, 64), np.uint8), **columns)


def make_job(indices):
    return ScanJob("a", "scan a", "patient", "train", {}, dict.fromkeys(indices, FILE), ((9, "no file"),), "signature")


def test_the_record_counts_rows_nodules_and_slices_left_out(tmp_path):
    job = make_job(range(6))
    record, clock = prepare_scan(job, make_row, tmp_path)
    assert (record["rows"], record["rows_with_nodules"], record["nodules"]) == (4, 3, 1)
    assert record["ratings"]["malignancy"] == {"4": 1} and record["ratings"]["texture"] == {"5": 1}
    assert record["left_out"] == [
        (3, "modality 'MR' instead of CT"),
        (5, "failed (RuntimeError: a bug)"),
        (9, "no file"),
    ]
    assert record["bytes"] == job.shard(tmp_path).stat().st_size and clock["encode"] > 0
    written = json.loads(job.record(tmp_path).read_text())
    assert written == json.loads(json.dumps(record))
    assert not is_finished(job, tmp_path)  # a slice that failed is tried again


def test_a_scan_is_finished_while_its_shard_and_files_stay(tmp_path):
    job = make_job(range(3))
    assert not is_finished(job, tmp_path)
    prepare_scan(job, make_row, tmp_path)
    assert is_finished(job, tmp_path)
    assert not is_finished(replace(job, signature="of other files"), tmp_path)
    shard = job.shard(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert not is_finished(job, tmp_path)


def test_the_record_names_the_slices_that_were_turned(tmp_path):
    job = make_job(range(3))
    job.files[1] = FILE._replace(orientation=Orientation(rows_reversed=True, columns_reversed=True))
    record, _ = prepare_scan(job, make_row, tmp_path)
    assert record["turned"] == {"turned by 180 degrees": [1]}


def test_a_patient_who_changes_split_leaves_no_shard_behind(tmp_path):
    job = make_job(range(2))
    prepare_scan(job, make_row, tmp_path)
    moved = replace(job, split="test")
    prepare_scan(moved, make_row, tmp_path)
    assert list((tmp_path / "data").iterdir()) == [moved.shard(tmp_path)]
