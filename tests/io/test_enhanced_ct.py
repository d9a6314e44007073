"""Enhanced CT, which holds a series in one file."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from lsdm_diffusers.data.ct_folder import ct_row, series_job
from lsdm_diffusers.data.scan import StageClock
from lsdm_diffusers.io.dicom import DicomError, index_dicom, read_slice
from lsdm_diffusers.io.map_upload import read_map_upload

from ..synthetic_dicom import thorax_hu, write_enhanced_ct, write_slice

FRAMES = {5.0: thorax_hu(10), 0.0: thorax_hu(20), 2.5: thorax_hu(30)}  # not in the order of z


def change(path, edit):
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return str(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_each_frame_is_the_slice_that_its_own_file_would_be(tmp_path, compressed):
    path = write_enhanced_ct(tmp_path / "a.dcm", FRAMES)
    if compressed:
        change(path, lambda dataset: dataset.compress(RLELossless))
    for number, hu in enumerate(FRAMES.values(), start=1):
        alone = read_slice(str(write_slice(tmp_path / "one.dcm", hu)))
        ct = read_slice(str(path), frame=number)
        np.testing.assert_array_equal(ct.hu, hu)
        assert (ct.pixel_spacing_mm, ct.slice_thickness_mm) == (alone.pixel_spacing_mm, alone.slice_thickness_mm)


def test_a_frame_that_is_not_there_or_not_named_is_refused(tmp_path):
    path = str(write_enhanced_ct(tmp_path / "a.dcm", FRAMES))
    with pytest.raises(DicomError, match="3 frames in one file, but `frame` does not say which"):
        read_slice(path)
    with pytest.raises(DicomError, match=r"`frame` is 4, but 1\.\.3 are in the file"):
        read_slice(path, frame=4)


def test_what_a_frame_states_takes_the_place_of_what_is_shared(tmp_path):
    def edit(dataset):
        rescale = pydicom.Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1000, "HU"
        dataset.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence = [rescale]

    path = change(write_enhanced_ct(tmp_path / "a.dcm", FRAMES), edit)
    np.testing.assert_array_equal(read_slice(path, frame=2).hu, FRAMES[0.0] + 24)
    np.testing.assert_array_equal(read_slice(path, frame=1).hu, FRAMES[5.0])


@pytest.mark.parametrize("frame_type", ["ORIGINAL\\PRIMARY\\LOCALIZER\\NONE", "DERIVED\\PRIMARY\\VOLUME\\MAXIMUM"])
def test_a_frame_of_another_kind_takes_no_place(tmp_path, frame_type):
    def edit(dataset):
        dataset.PerFrameFunctionalGroupsSequence[1].CTImageFrameTypeSequence[0].FrameType = frame_type

    path = change(write_enhanced_ct(tmp_path / "a.dcm", FRAMES), edit)
    with pytest.raises(DicomError, match="frame type .* is not that of a slice of tissue"):
        read_slice(path, frame=2)
    (entries,) = index_dicom(tmp_path)[0].values()
    assert [entry.fault is None for entry in entries] == [True, False, True]


def test_the_frames_are_the_slices_of_the_series_in_the_order_of_z(tmp_path):
    write_enhanced_ct(tmp_path / "ct" / "a.dcm", FRAMES)
    (entries,) = index_dicom(tmp_path / "ct")[0].values()
    job, left_out = series_job(entries, tmp_path / "ct", None, 1.0, 0.0, 0.0, 0)
    assert left_out == [] and [job.files[index].frame for index in range(3)] == [2, 3, 1]
    rows = [ct_row(job, index, StageClock(), tmp_path / "ct", None, None, 16) for index in range(3)]
    assert [row["slice_z_mm"] for row in rows] == [0.0, 2.5, 5.0]
    write_slice(tmp_path / "alone" / "a.dcm", FRAMES[2.5], ImagePositionPatient=[0, 0, 2.5])
    (files,) = index_dicom(tmp_path / "alone")[0].values()
    alone, _ = series_job(files, tmp_path / "alone", None, 1.0, 0.0, 0.0, 0)
    row = ct_row(alone, 0, StageClock(), tmp_path / "alone", None, None, 16)
    assert {**row, "slice_index": 1} == rows[1]


def test_the_same_fault_of_all_frames_is_named_once(tmp_path):
    path = write_enhanced_ct(tmp_path / "a.dcm", FRAMES)
    change(path, lambda dataset: dataset.__delattr__("SharedFunctionalGroupsSequence"))
    ((entry,),) = index_dicom(tmp_path)[0].values()
    assert (entry.frame, entry.fault) == (None, "no PixelSpacing in the header")


def test_an_upload_takes_the_middle_slice_and_says_so(tmp_path):
    upload = read_map_upload(write_enhanced_ct(tmp_path / "a.dcm", FRAMES))
    np.testing.assert_array_equal(upload.hu, FRAMES[2.5])
    assert "The file holds 3 slices: the middle one, frame 3 (z = 2.5 mm), was taken." in upload.message


def test_an_upload_without_preamble_is_read(tmp_path):
    bare = pydicom.Dataset()
    bare.update(pydicom.dcmread(write_slice(tmp_path / "whole.dcm", thorax_hu())))
    bare.save_as(tmp_path / "IM0001", implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(read_map_upload(tmp_path / "IM0001").hu, thorax_hu())
    (tmp_path / "other").write_bytes(b"\x08\x00" + bytes(50))
    with pytest.raises(ValueError, match="neither PNG, DICOM nor .npy"):
        read_map_upload(tmp_path / "other")
