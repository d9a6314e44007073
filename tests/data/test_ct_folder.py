"""A folder of any CT: order of the files, the user's own maps."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lsdm_diffusers.data.ct_folder import (
    ct_row,
    find_map_file,
    group_series,
    order_by_z,
    read_own_map,
    series_job,
    unrated_nodules,
)
from lsdm_diffusers.data.dataset import decode_image
from lsdm_diffusers.data.scan import StageClock
from lsdm_diffusers.io.dicom import DicomError, SliceFile, index_dicom
from lsdm_diffusers.semantic_map import semantic_map_image

from ..synthetic_dicom import thorax_hu, write_slice


def slice_file(path="a.dcm", z=0.0, number=1, patient="p", series="1.1", uid="1.1.1"):
    return SliceFile(str(path), patient, series, uid, z, number, 100)


def test_two_patients_may_share_a_series_uid():
    files = [slice_file(patient="b"), slice_file(patient="a"), slice_file(series="")]
    groups, left_out = group_series(files)
    assert list(groups) == [("a", "1.1"), ("b", "1.1")]
    assert [(omitted.file, omitted.reason) for omitted in left_out] == [(files[2], "no SeriesInstanceUID")]


def test_the_lowest_instance_number_wins_at_each_place():
    files = [slice_file(z=5.0), slice_file(z=2.5, number=3), slice_file(z=2.54, number=2), slice_file(z=None)]
    ordered, left_out = order_by_z(files)
    assert ordered == [files[2], files[0]]
    assert {omitted.file for omitted in left_out} == {files[1], files[3]}


SMALL = thorax_hu()[::8, ::8]
SAGITTAL = [0, 1, 0, 0, 0, -1]


def job_of(folder, semantic_map_dir=None):
    ((*_, files),) = index_dicom(folder)[0].items()
    return series_job(files, folder, semantic_map_dir, 1.0, 0.0, 0.0, 0)


def reasons_of(folder, left_out):
    return {str(Path(file.path).relative_to(folder)): reason for file, reason in left_out}


def test_a_localizer_takes_no_place(tmp_path):
    tags = {"SOPInstanceUID": "1.1", "InstanceNumber": 1, "ImageOrientationPatient": SAGITTAL}
    write_slice(tmp_path / "localizer.dcm", SMALL, **tags)
    axial = write_slice(tmp_path / "axial.dcm", SMALL, SOPInstanceUID="1.2", InstanceNumber=2)
    job, left_out = job_of(tmp_path)
    assert {index: file.path for index, file in job.files.items()} == {0: str(axial)}
    (reason,) = reasons_of(tmp_path, left_out).values()
    assert reason.endswith("is not that of an axial slice")


def test_a_sagittal_series_is_called_what_it_is(tmp_path):
    for number in range(3):
        tags = {"SOPInstanceUID": f"1.{number}", "InstanceNumber": number, "ImageOrientationPatient": SAGITTAL}
        write_slice(tmp_path / f"{number}.dcm", SMALL, **tags)
    job, left_out = job_of(tmp_path)
    assert job.files == {}
    reasons = reasons_of(tmp_path, left_out)
    assert reasons.keys() == {"0.dcm", "1.dcm", "2.dcm"}
    assert all(reason.endswith("is not that of an axial slice") for reason in reasons.values())


def test_a_truncated_copy_does_not_hide_the_whole_one(tmp_path):
    cut = write_slice(tmp_path / "a" / "1.dcm", SMALL)
    whole = write_slice(tmp_path / "b" / "1.dcm", SMALL)
    cut.write_bytes(cut.read_bytes()[:-3000])
    job, left_out = job_of(tmp_path)
    assert job.files[0].path == str(whole)
    (path,) = reasons_of(tmp_path, left_out)
    assert path == "a/1.dcm" and left_out[0].reason.startswith("unreadable")


def test_a_place_without_a_readable_file_is_reported_with_the_slice(tmp_path):
    """Its equal copy needs no line of its own; a file with another fault gets one."""
    for name, missing_bytes in (("a", 3000), ("b", 3000), ("c", 2000)):
        path = write_slice(tmp_path / name / "1.dcm", SMALL)
        path.write_bytes(path.read_bytes()[:-missing_bytes])
    job, left_out = job_of(tmp_path)
    assert job.files[0].path == str(tmp_path / "a" / "1.dcm")
    assert list(reasons_of(tmp_path, left_out)) == ["c/1.dcm"]


def test_a_prone_slice_is_turned_with_the_users_map(tmp_path):
    """The row is that of the same slice of a supine patient, and the map follows."""
    hu = thorax_hu(8)
    own = np.full(hu.shape, 4, np.uint8)
    own[100:110, 200:240] = 7
    rows = []
    for name, step, orientation in (("supine", 1, [1, 0, 0, 0, 1, 0]), ("prone", -1, [-1, 0, 0, 0, -1, 0])):
        folder, maps = tmp_path / name / "ct", tmp_path / name / "maps"
        stored = np.ascontiguousarray(hu[::step, ::step])
        write_slice(folder / "1.dcm", stored, ImageOrientationPatient=orientation)
        maps.mkdir()
        semantic_map_image(np.ascontiguousarray(own[::step, ::step])).save(maps / "1.png")
        job, _ = job_of(folder, maps)
        rows.append(ct_row(job, 0, StageClock(), folder, maps, None, 16))
        assert job.files[0].orientation.is_standard == (name == "supine")
    assert rows[0] == rows[1]
    np.testing.assert_array_equal(decode_image(Image.open(io.BytesIO(rows[1]["image"]["bytes"]))), hu.clip(-1024, 800))
    assert rows[1]["nodules"][0]["box_yxyx"] == [100, 200, 110, 240]


def test_a_map_is_found_by_path_or_by_uid(tmp_path):
    dicom_dir, map_dir = tmp_path / "dicom", tmp_path / "maps"
    (map_dir / "series").mkdir(parents=True)
    by_path, by_uid, without_suffix = map_dir / "series" / "0.png", map_dir / "1.2.3.png", map_dir / "1.9.png"
    for path in (by_path, by_uid, without_suffix):
        path.write_bytes(b"")
    assert find_map_file(map_dir, slice_file(dicom_dir / "series" / "0.DCM"), dicom_dir) == by_path
    assert find_map_file(map_dir, slice_file(dicom_dir / "b.dcm", uid="1.2.3"), dicom_dir) == by_uid
    assert find_map_file(map_dir, slice_file(dicom_dir / "1.9", uid=""), dicom_dir) == without_suffix
    assert find_map_file(map_dir, slice_file(dicom_dir / "b.dcm", uid="../1.2.3"), dicom_dir) is None


def test_a_map_that_is_absent_or_broken_is_refused(tmp_path):
    with pytest.raises(DicomError, match="no semantic map in --semantic_map_dir"):
        read_own_map(None, (64, 64))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DicomError, match="semantic map a.png: `semantic_map` is a.png, but a PNG") as raised:
        read_own_map(tmp_path / "a.png", (64, 64))
    assert str(tmp_path) not in str(raised.value)


def test_nodules_of_a_map_have_no_ratings():
    semantic_map = np.full((64, 64), 4, np.uint8)
    semantic_map[10:20, 20:40] = 7
    (nodule,) = unrated_nodules(semantic_map, "1.2", 0.5)
    assert nodule["nodule_id"] == "1.2-0" and nodule["box_yxyx"] == [10, 20, 20, 40]
    assert nodule["malignancy"] is None and nodule["texture_ratings"] == []
    assert nodule["diameter_mm"] == pytest.approx(2 * (200 / np.pi) ** 0.5 * 0.5)
