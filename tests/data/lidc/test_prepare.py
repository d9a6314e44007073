"""Jobs of LIDC-IDRI scans: the file of each chosen slice."""

import numpy as np
import pytest

from lsdm_diffusers.data.lidc import LidcNodule, ScanPlan, prepare
from lsdm_diffusers.data.lidc.prepare import lidc_job, lidc_row, nodule_entry
from lsdm_diffusers.data.scan import StageClock
from lsdm_diffusers.io.dicom import SliceFile, index_dicom

from ...synthetic_dicom import thorax_hu, write_slice

PLAN = ScanPlan(7, "LIDC-IDRI-0001", "1.1", 2.5, 0.7, False, (0.0, 2.5, 5.0), (1,), (0, 1, 2), "train")


def slice_file(path, z, number=1):
    return SliceFile(path, "LIDC-IDRI-0001", "1.1", f"1.1.{path}", z, number, 100)


def test_each_slice_has_the_file_at_its_z_of_the_lowest_instance_number():
    files = [slice_file("a", 0.05), slice_file("b", 2.5, 9), slice_file("c", 2.5, 8), slice_file("d", None)]
    job = lidc_job(PLAN, files)
    assert job.name == "LIDC-IDRI-0001-scan-0007" and job.split == "train"
    assert {index: file.path for index, file in job.files.items()} == {0: "a", 1: "c"}
    assert list(job.left_out) == [(2, "no file of the series at z = 5 mm")]


def test_a_copy_of_the_files_does_not_change_the_signature():
    files = [slice_file("a", 0.0), slice_file("b", 2.5)]
    copies = [file._replace(path=f"copy/{file.path}") for file in files]
    assert lidc_job(PLAN, files).signature == lidc_job(PLAN, files + copies).signature
    assert lidc_job(PLAN, files).signature != lidc_job(PLAN, files[:1]).signature


def test_a_truncated_copy_and_a_localizer_do_not_hide_the_slice(tmp_path):
    hu = thorax_hu()[::8, ::8]
    cut = write_slice(tmp_path / "a" / "1.dcm", hu, SOPInstanceUID="1.2", InstanceNumber=2)
    whole = write_slice(tmp_path / "b" / "1.dcm", hu, SOPInstanceUID="1.2", InstanceNumber=2)
    localizer = {"SOPInstanceUID": "1.1", "InstanceNumber": 1, "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    write_slice(tmp_path / "localizer.dcm", hu, **localizer)
    cut.write_bytes(cut.read_bytes()[:-3000])
    ((*_, files),) = index_dicom(tmp_path)[0].items()
    job = lidc_job(PLAN, files)
    assert job.files[0].path == str(whole)
    reasons = {file.path: reason for file, reason in job.passed_over}
    assert reasons[str(cut)].startswith("unreadable")
    assert reasons[str(tmp_path / "localizer.dcm")].endswith("is not that of an axial slice")


def test_the_nodules_of_a_prone_slice_are_turned_with_it(tmp_path, monkeypatch):
    """The outlines are those of the stored pixels; the row is that of the same slice of a supine patient."""
    hu = thorax_hu(8)
    ratings = dict.fromkeys(("malignancy", "lobulation", "spiculation", "texture"), (4,))
    mask = np.zeros(hu.shape, dtype=bool)
    mask[230:240, 120:135] = mask[230:235, 120:140] = True
    rows = []
    for step, orientation in ((1, [1, 0, 0, 0, 1, 0]), (-1, [-1, 0, 0, 0, -1, 0])):
        path = write_slice(
            tmp_path / str(step) / "1.dcm",
            np.ascontiguousarray(hu[::step, ::step]),
            ImageOrientationPatient=orientation,
        )
        nodule = LidcNodule("7-0", (1,), ratings, 5.0, {0: ((0, 0), mask[::step, ::step])})
        monkeypatch.setattr(prepare, "cached_scan_nodules", lambda *_, nodule=nodule: [nodule])
        ((*_, files),) = index_dicom(path.parent)[0].items()
        rows.append(lidc_row(lidc_job(PLAN, files), 0, StageClock(), 0.5, 16))
    assert rows[0] == rows[1]
    assert rows[1]["nodules"][0]["box_yxyx"] == [230, 120, 240, 140]


def test_the_entry_of_a_nodule_has_the_median_and_each_rating():
    ratings = {"malignancy": (2, 3), "lobulation": (1, 1), "spiculation": (5, 4), "texture": (5, 5)}
    nodule = LidcNodule("7-0", (1, 2), ratings, 5.0, {})
    mask = np.zeros((16, 16), dtype=bool)
    mask[2:5, 6:8] = True
    entry = nodule_entry(nodule, mask)
    assert entry["centroid_yx"] == [3.0, 6.5] and entry["box_yxyx"] == [2, 6, 5, 8]
    assert entry["malignancy"] == 3 and entry["spiculation"] == 5 and entry["malignancy_ratings"] == [2, 3]
    assert entry["num_readers"] == 2 and entry["diameter_mm"] == pytest.approx(5)
