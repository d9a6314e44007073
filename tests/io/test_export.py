"""Slices saved as PNG, NumPy, NIfTI, DICOM and JSON."""

import json
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest

from lsdm_diffusers.hounsfield import WINDOWS, apply_window
from lsdm_diffusers.io.dicom import read_slice
from lsdm_diffusers.io.export import export_ct, save_nifti

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


@pytest.fixture
def hu():
    return np.random.default_rng(0).integers(-1024, 3072, (96, 128)).astype(np.int16)


def test_hounsfield_units_come_back_from_every_format(hu, tmp_path):
    paths = export_ct(
        hu, tmp_path / "new", "slice 1.a", pixel_spacing=0.67, slice_thickness=1.25, parameters={"seed": 3}
    )
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths.values())
    np.testing.assert_array_equal(np.load(paths["npy"], allow_pickle=False), hu)
    assert np.load(paths["npy"]).dtype == np.int16
    volume = nibabel.load(paths["nifti"])
    assert volume.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(volume.dataobj)[:, :, 0].T, hu)
    dicom = pydicom.dcmread(paths["dicom"])
    np.testing.assert_array_equal(pydicom.pixels.apply_rescale(dicom.pixel_array, dicom), hu)
    ct = read_slice(str(paths["dicom"]))
    np.testing.assert_array_equal(ct.hu, hu)
    assert (ct.pixel_spacing_mm, ct.slice_thickness_mm) == (0.67, 1.25)
    parameters = json.loads(paths["json"].read_text())
    assert parameters["seed"] == 3 and parameters["pixel_spacing_mm"] == 0.67 and "SYNTHETIC" in parameters["notice"]


def test_nifti_and_dicom_place_a_pixel_at_the_same_point_of_the_patient(hu, tmp_path):
    paths = export_ct(hu, tmp_path, "a", formats=["nifti", "dicom"], pixel_spacing=0.7)
    volume, dicom = nibabel.load(paths["nifti"]), pydicom.dcmread(paths["dicom"])
    assert nibabel.aff2axcodes(volume.affine) == ("L", "P", "S")
    row, column = 10, 100
    along_row, along_column = np.array(dicom.ImageOrientationPatient, float).reshape(2, 3)
    lps = np.array(dicom.ImagePositionPatient, float) + 0.7 * (column * along_row + row * along_column)
    np.testing.assert_allclose(volume.affine @ [column, row, 0, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-4)
    assert lps[0] > 0 and lps[1] < 0  # right of the picture and its top: the patient's left, anterior


# DICOM PS3.3, table A.3-1: the modules of the CT Image IOD that are mandatory
TYPE_1 = """SOPClassUID SOPInstanceUID StudyInstanceUID Modality SeriesInstanceUID FrameOfReferenceUID PixelSpacing
    ImageOrientationPatient ImagePositionPatient SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated
    BitsStored HighBit PixelRepresentation PixelData ImageType RescaleIntercept RescaleSlope""".split()
TYPE_2 = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
    AccessionNumber SeriesNumber PatientPosition PositionReferenceIndicator Manufacturer InstanceNumber SliceThickness
    KVP AcquisitionNumber""".split()
SYNTHETIC_DATA_TAG = "(0x0008,0x001c)"  # of 2023, unknown to the validator


def test_dicom_is_a_ct_image_marked_as_synthetic(hu, tmp_path):
    first, second = (pydicom.dcmread(export_ct(hu, tmp_path, name, formats=["dicom"])["dicom"]) for name in "ab")
    assert all(first.get(keyword) not in (None, "") for keyword in TYPE_1)
    assert all(keyword in first for keyword in TYPE_2)
    assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == pydicom.uid.CTImageStorage
    assert first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert first[keyword].value != second[keyword].value
        assert first[keyword].value.is_valid and first[keyword].value.startswith("2.25.")
    assert list(first.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    for keyword in ("PatientName", "PatientID", "StudyDescription", "SeriesDescription", "ImageComments"):
        assert "SYNTHETIC" in str(first[keyword].value)
    assert (first.BurnedInAnnotation, first.ContentQualification, first.SyntheticData) == ("NO", "RESEARCH", "YES")
    assert (first.WindowCenter, first.WindowWidth) == WINDOWS["lung"]


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize("spacing", [0.7, 0.703125, 2 / 3])
def test_dicom_passes_a_validator(hu, tmp_path, spacing):
    path = export_ct(hu, tmp_path, "a", formats=["dicom"], pixel_spacing=spacing)["dicom"]
    report = subprocess.run(["dciodvfy", path], capture_output=True, text=True).stderr
    errors = [line for line in report.splitlines() if line.startswith("Error") and SYNTHETIC_DATA_TAG not in line]
    assert "CTImage" in report and not errors, report


@pytest.mark.parametrize("window", [*WINDOWS, (100, 50)])
def test_windows_are_those_of_a_dicom_viewer(hu, tmp_path, window):
    path = export_ct(hu, tmp_path, "a", formats=["dicom", "png"], window=window)
    viewed = pydicom.pixels.apply_windowing(hu.astype(float), pydicom.dcmread(path["dicom"]))
    expected = (viewed + 2**15) * (255 / (2**16 - 1))  # of 16 signed bits
    with PIL.Image.open(path["png"]) as image:
        assert image.mode == "L" and "SYNTHETIC" in image.text["Description"]
        assert np.abs(np.asarray(image) - expected).max() <= 0.51


def test_a_window_clips_and_rises():
    grey = apply_window(np.arange(-1024, 1000), "mediastinal")
    assert grey.dtype == np.uint8 and (np.diff(grey.astype(int)) >= 0).all()
    assert grey[0] == 0 and grey[-1] == 255 and abs(int(apply_window(40, "mediastinal")) - 128) <= 1
    with pytest.raises(ValueError, match="`window` is 'brain', but 'lung', 'mediastinal', 'bone'"):
        apply_window(0, "brain")
    with pytest.raises(ValueError, match=r"`window` is \(40, 0\)"):
        apply_window(0, (40, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"name": name}, "`name` is")
            for name in ("../a", "a/b", "/etc/a", "..", ".a", "", "a\\b", "a\0", "a\n", "ä", "a" * 101)
        ),
        ({"formats": ["png", "jpeg"]}, "`formats` is .*'jpeg'"),
        ({"formats": "png"}, "`formats` is 'png'"),
        ({"pixel_spacing": 0}, "`pixel_spacing` is 0"),
        ({"slice_thickness": float("nan")}, "`slice_thickness` is nan"),
        ({"window": "brain"}, "`window` is 'brain'"),
        ({"parameters": {"scale": float("nan")}}, "`parameters` cannot be written"),
        ({"parameters": {"map": np.zeros(2)}}, "`parameters` cannot be written"),
        ({"hu": np.zeros((2, 8, 8), np.int16)}, r"`hu` has shape \(2, 8, 8\)"),
        ({"hu": np.zeros((8, 8))}, "`hu` has dtype float64"),
        ({"hu": np.full((8, 8), -1025)}, "`hu` has values -1025..-1025"),
    ],
)
def test_a_wrong_argument_writes_nothing(hu, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_ct(**{"hu": hu, "folder": tmp_path / "out", "name": "a", **arguments})
    assert not list(tmp_path.iterdir())


def test_the_suffix_of_a_nifti_file_says_whether_it_is_compressed(hu, tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        save_nifti(hu, tmp_path / name)
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / name).dataobj)[:, :, 0].T, hu)
    with pytest.raises(ValueError, match="`path` is .*a.img, but a name that ends in .nii"):
        save_nifti(hu, tmp_path / "a.img")
