"""A folder of any CT: order of the files, the user's own maps."""

import numpy as np
import pytest

from lsdm_diffusers.data.ct_folder import find_map_file, group_series, order_by_z, read_own_map, unrated_nodules
from lsdm_diffusers.io.dicom import DicomError, SliceFile


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
