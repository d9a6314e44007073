"""training/prepare_ct.py: any CT in DICOM, with computed maps or the user's own, through the real command."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from lsdm_diffusers.data.dataset import FEATURES, decode_image
from lsdm_diffusers.labels import SemanticLabel
from lsdm_diffusers.segmentation import semantic_map_from_hu

from ..conftest import TRAINING
from ..synthetic_dicom import thorax_hu, write_slice

pytestmark = pytest.mark.slow
SCRIPT = TRAINING / "prepare_ct.py"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two series of three slices, one of a patient whose id is a path; a series of another modality; faulty files."""
    folder = tmp_path_factory.mktemp("ct")
    for series, patient in (("1.1", "../../outside"), ("1.2", "B")):
        for number in range(3):
            tags = {
                "SeriesInstanceUID": series,
                "PatientID": patient,
                "SOPInstanceUID": f"{series}.{number}",
                "InstanceNumber": number,
            }
            tags["ImagePositionPatient"] = [0, 0, 2.5 * number]
            write_slice(folder / f"series {series}" / f"{number}.dcm", thorax_hu(4 * number), **tags)
    write_slice(folder / "pet.dcm", thorax_hu(), SeriesInstanceUID="1.3", SOPInstanceUID="1.3.1", Modality="PT")
    tags = {"SeriesInstanceUID": "1.2", "PatientID": "B", "InstanceNumber": 9}
    write_slice(folder / "again.dcm", thorax_hu(), SOPInstanceUID="1.2.8", ImagePositionPatient=[0, 0, 2.5], **tags)
    write_slice(folder / "nowhere.dcm", thorax_hu(), SOPInstanceUID="1.2.9", ImagePositionPatient=None, **tags)
    write_slice(folder / "of no series.dcm", thorax_hu(), SeriesInstanceUID=None, SOPInstanceUID="1.5")
    (folder / os.fsdecode(b"M\xfcller.dcm")).write_bytes(b"noise")
    return folder


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def test_a_folder_of_ct_becomes_a_dataset(archive, tmp_path):
    done = run("--dicom_dir", archive, "--output_dir", tmp_path / "dataset", "--validation_fraction", 0, "--report")
    assert done.returncode == 0, done.stderr
    rows = load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features == FEATURES
    assert sorted((row["sop_instance_uid"], row["slice_index"], row["slice_z_mm"]) for row in rows) == [
        (f"{series}.{number}", number, 2.5 * number) for series in ("1.1", "1.2") for number in range(3)
    ]
    for row in rows:
        hu = thorax_hu(4 * row["slice_index"])
        np.testing.assert_array_equal(decode_image(row["image"]), np.clip(hu, -1024, 800))
        np.testing.assert_array_equal(np.asarray(row["semantic_map"]), semantic_map_from_hu(hu, 0.7))
        assert row["nodules"] == [] and row["pylidc_scan_id"] is None
    assert {row["patient_id"] for row in rows} == {"../../outside", "B"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "dataset"]  # a patient's id is no path
    with open(tmp_path / "dataset" / "skipped.csv", newline="") as file:
        left_out = {row["reason"] for row in csv.DictReader(file)}
    assert left_out == {
        "modality 'PT' instead of CT",
        "another slice of the series, of a lower instance number, lies at z = 2.5 mm",
        "no position of the slice (ImagePositionPatient)",
        "no SeriesInstanceUID",
        "not a DICOM file",
    }


def test_own_maps_are_taken_and_their_nodules_listed(archive, tmp_path):
    maps = tmp_path / "maps"
    own = np.full((512, 512), SemanticLabel.LUNG, dtype=np.uint8)
    own[100:110, 200:220] = SemanticLabel.NODULE_MALIGNANT
    (maps / "series 1.1").mkdir(parents=True)
    Image.fromarray(own).save(maps / "series 1.1" / "0.png")  # by path
    Image.fromarray(own).save(maps / "1.2.2.png")  # by SOPInstanceUID
    Image.fromarray(own[:64, :64]).save(maps / "series 1.1" / "1.png")
    Image.fromarray(own + 3).save(maps / "series 1.1" / "2.png")
    (maps / "1.2.1.png").write_bytes(b"no picture")
    done = run(
        "--dicom_dir",
        archive,
        "--semantic_map_dir",
        maps,
        "--output_dir",
        tmp_path / "dataset",
        "--validation_fraction",
        0,
    )
    assert done.returncode == 0, done.stderr
    rows = load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(row["sop_instance_uid"] for row in rows) == ["1.1.0", "1.2.2"]
    for row in rows:
        np.testing.assert_array_equal(np.asarray(row["semantic_map"]), own)
        (nodule,) = row["nodules"]
        assert nodule["box_yxyx"] == [100, 200, 110, 220] and nodule["centroid_yx"] == [104.5, 209.5]
        assert nodule["malignancy"] is None and nodule["malignancy_ratings"] == []
        assert nodule["diameter_mm"] == pytest.approx(2 * (200 / np.pi) ** 0.5 * 0.7)
    reasons = " ".join(row["reason"] for row in csv.DictReader(open(tmp_path / "dataset" / "skipped.csv", newline="")))
    assert str(tmp_path) not in reasons and str(archive) not in reasons
    for reason in (
        "1.png has 64x64 pixels, the slice 512x512",
        "2.png: `semantic_map` contains the value 10",
        "1.2.1.png: ",
        "no semantic map in",
    ):
        assert reason in reasons


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dicom_dir", "nowhere", "--output_dir", "x"), "--dicom_dir is nowhere, but that is not a folder"),
        (("--dicom_dir", ".", "--output_dir", "x", "--slice_fraction", "2"), "`slice_fraction` is 2.0"),
        (("--dicom_dir", ".", "--output_dir", "x", "--num_proc", "0"), "`num_proc` is 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr


def test_a_folder_without_dicom_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("--dicom_dir", tmp_path / "empty", "--output_dir", tmp_path / "dataset")
    assert done.returncode != 0 and "holds no DICOM file that can be read" in done.stderr
