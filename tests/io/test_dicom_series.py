"""A whole series: its slices in order and in place, or a refusal that names what is wrong."""

import numpy as np
import pydicom
import pytest

from lsdm_diffusers.io.dicom import DicomError, Orientation, read_series
from lsdm_diffusers.io.dicom.derived_series import stored_edit

from ..synthetic_dicom import thorax_hu, write_slice
from ..synthetic_series import SLICE_SPACING, SPACING, write_series


def test_slices_come_from_the_feet_to_the_head(tmp_path):
    folder = write_series(tmp_path / "scan", order=[3, 0, 5, 1, 4, 2])
    series = read_series(folder)
    assert series.hu.shape == (6, 128, 128) and series.hu.dtype == np.int16
    assert [file.z_mm for file in series.files] == [-10 + SLICE_SPACING * index for index in range(6)]
    assert (series.pixel_spacing_mm, series.slice_spacing_mm) == (SPACING, SLICE_SPACING)
    assert series.origin_mm == (-180, -170, -10)
    place = series.place_of((2, 30, 40))
    assert place == (-10 + 2 * SLICE_SPACING, -170 + 30 * SPACING, -180 + 40 * SPACING)
    np.testing.assert_allclose(series.index_of(place), (2, 30, 40))
    # NIfTI counts x to the right and y to the front
    np.testing.assert_allclose(series.nifti_affine @ [40, 30, 2, 1], [-place[2], -place[1], place[0], 1])


@pytest.mark.parametrize("cosines", [[-1, 0, 0, 0, -1, 0], [0, 1, 0, 1, 0, 0], [1, 0, 0, 0, -1, 0]])
def test_a_turned_series_lies_at_the_same_place(tmp_path, cosines):
    """The same scan, stored in another order of rows and columns."""
    straight = read_series(write_series(tmp_path / "straight"))
    turned = read_series(write_series(tmp_path / "turned", cosines=cosines))
    np.testing.assert_array_equal(turned.hu, straight.hu)
    np.testing.assert_allclose(turned.origin_mm, straight.origin_mm)
    assert not turned.orientation.is_standard


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_turning_back_undoes_turning(exchanged, rows, columns):
    orientation = Orientation(exchanged, rows, columns)
    stored = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(orientation.turn_back(orientation.turn(stored)), stored)


def change(folder, index, **elements):
    path = folder / f"{index}.dcm"
    dataset = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


WRONG = {
    "a gap": (r"slices are missing", lambda folder: (folder / "2.dcm").unlink()),
    "two at a place": (r"1.dcm and 2.dcm lie at the same place", lambda f: move(f, 2, -10 + SLICE_SPACING)),
    "sizes": (r"different sizes: 120x128, 128x128", lambda f: cut(f, 1)),
    "spacing": (r"different pixel spacings: 2.7 mm, 2.8 mm", lambda f: change(f, 1, PixelSpacing=[2.7, 2.7])),
    "tilt": (r"tilted gantry", lambda f: move(f, 3, -10 + 3 * SLICE_SPACING, y=-165)),
    "oblique": (
        r"0.dcm is tilted",
        lambda f: [change(f, k, ImageOrientationPatient=[1, 0, 0, 0, 0.98, 0.199]) for k in range(6)],
    ),
    "no position": (r"1.dcm has no position", lambda f: change(f, 1, ImagePositionPatient=None)),
    "one slice": (r"0 series of axial CT", lambda f: [(f / f"{k}.dcm").unlink() for k in range(1, 6)]),
    "two series": (r"2 series .* and one is needed; found: 1\.2 \(6 slices\); 1\.3 \(6", lambda f: second(f)),
    "broken slice": (r"2.dcm: ", lambda f: change(f, 2, PixelData=b"\0" * 10)),
}


def move(folder, index, z, y=-170):
    change(folder, index, ImagePositionPatient=[-180, y, z])


def cut(folder, index):
    write_slice(folder / f"{index}.dcm", thorax_hu()[::4, ::4][:120], **tags_of(folder / f"{index}.dcm"))


def tags_of(path):
    dataset = pydicom.dcmread(path)
    names = ("SOPInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "PixelSpacing", "InstanceNumber")
    return {name: getattr(dataset, name) for name in names}


def second(folder):
    for index in range(6):
        dataset = pydicom.dcmread(folder / f"{index}.dcm")
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "1.3", f"1.3.{index}"
        dataset.save_as(folder / f"other-{index}.dcm")


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_series_is_named(tmp_path, case):
    message, spoil = WRONG[case]
    folder = write_series(tmp_path / "scan")
    spoil(folder)
    with pytest.raises(DicomError, match=message):
        read_series(folder)


def test_other_files_and_copies_are_left_out(tmp_path):
    folder = write_series(tmp_path / "scan")
    write_slice(folder / "localizer.dcm", thorax_hu(), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    (folder / "LICENSE").write_text("text")
    (folder / "copy.dcm").write_bytes((folder / "1.dcm").read_bytes())
    series = read_series(folder)
    assert len(series.files) == 6 and len(series.left_out) == 1 and "localizer.dcm" in series.left_out[0]
    second(folder)
    assert read_series(folder, "1.3").series_instance_uid == "1.3"
    with pytest.raises(DicomError, match=r"no series 1\.9 .* found: 1\.2 \(6 slices\); 1\.3 \(6 slices\)"):
        read_series(folder, "1.9")


@pytest.mark.parametrize(
    "slope, intercept, bits, signed, expected", [(1, -1024, 12, 0, 4095), (2, 0, 16, 1, 1536), (1, 0, 12, 1, 2047)]
)
def test_edited_pixels_are_stored_as_the_file_can_hold_them(slope, intercept, bits, signed, expected):
    dataset = pydicom.Dataset()
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.BitsStored, dataset.PixelRepresentation = bits, signed
    stored = np.full((2, 2), 7, dtype=np.int16 if signed else np.uint16)
    mask = np.array([[True, True], [False, False]])
    changed = stored_edit(dataset, stored, np.array([[3071, 40], [99, 99]]), mask)
    assert changed.dtype == stored.dtype and changed[1].tolist() == [7, 7]
    assert changed[0].tolist() == [expected, (40 - intercept) // slope]
