"""CT slices from DICOM, whole and broken."""

import io
import random

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from lsdm_diffusers.io.dicom import DicomError, describe_error, index_dicom, read_slice

from ..synthetic_dicom import thorax_hu, write_slice


def test_hounsfield_units_are_those_of_pydicom(tmp_path):
    hu = np.random.default_rng(0).integers(-1024, 3000, (64, 64)).astype(np.int16)
    ct = read_slice(str(write_slice(tmp_path / "a.dcm", hu)))
    np.testing.assert_array_equal(ct.hu, hu)
    assert (ct.pixel_spacing_mm, ct.slice_thickness_mm, ct.contrast_used) == (0.7, 2.5, False)
    assert (ct.patient_id, ct.sop_instance_uid) == ("LIDC-IDRI-0000", "1.2.3")
    assert read_slice(str(write_slice(tmp_path / "b.dcm", hu, ContrastBolusAgent="Omnipaque"))).contrast_used


def test_rescale_slope_and_padding(tmp_path):
    hu = thorax_hu()[::8, ::8]
    halves = ((hu.astype(int) + 1000) * 2).astype(np.uint16).tobytes()
    sloped = write_slice(tmp_path / "slope.dcm", hu, stored=halves, RescaleSlope=0.5, RescaleIntercept=-1000)
    np.testing.assert_array_equal(read_slice(str(sloped)).hu, hu)
    for padding in (-2000, -3024):
        padded = hu.copy()
        padded[:5] = padding
        file = write_slice(
            tmp_path / "padded.dcm", hu, stored=padded.tobytes(), PixelRepresentation=1, RescaleIntercept=0
        )
        expected = np.where(np.arange(64)[:, None] < 5, -1024, hu)
        np.testing.assert_array_equal(read_slice(str(file)).hu, expected)
    unsigned = (hu.astype(int) + 1024).astype(np.uint16)
    unsigned[:5] = 63536
    file = write_slice(tmp_path / "high.dcm", hu, stored=unsigned.tobytes(), PixelPaddingValue=63536)
    np.testing.assert_array_equal(read_slice(str(file)).hu, expected)


def jpeg_2000(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg2000", irreversible=False)
    return encapsulate([stream.getvalue()])


def test_a_compressed_slice_is_read_if_it_is_as_large_as_the_header_says(tmp_path):
    hu = thorax_hu()[::8, ::8]
    stored = (hu.astype(int) + 1024).astype(np.uint16)
    file = write_slice(tmp_path / "a.dcm", hu, syntax=JPEG2000Lossless, stored=jpeg_2000(stored))
    np.testing.assert_array_equal(read_slice(str(file)).hu, hu)
    file = write_slice(
        tmp_path / "b.dcm", hu, syntax=JPEG2000Lossless, stored=jpeg_2000(np.zeros((3000, 2000), np.uint16))
    )
    with pytest.raises(DicomError, match=r"shape \(3000, 2000\) instead of \(64, 64\)"):
        read_slice(str(file))


SMALL = thorax_hu()[::8, ::8]
BROKEN = {
    "modality 'MR' instead of CT": {"Modality": "MR"},
    "3 frames in one file": {
        "NumberOfFrames": 3,
        "stored": (SMALL.astype(int) + 1024).astype(np.uint16).tobytes() * 3,
    },
    "is not that of an axial slice": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    "seen from the feet": {"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]},
    "of an axial slice": {"ImageOrientationPatient": [0, 1, 0, -1, 0, 0]},
    "orientation .*nan": {"ImageOrientationPatient": ["nan", 0, 0, 0, 1, 0]},
    "but square pixels of": {"PixelSpacing": [0.7, 0.9]},
    "0.001 x 0.001 mm": {"PixelSpacing": [0.001, 0.001]},
    "rescale type 'mg/ml'": {"RescaleType": "mg/ml"},
    "slice thickness nan": {"SliceThickness": "nan"},
    "no rescale slope and intercept": {"RescaleSlope": None},
    "rescale slope 0 ": {"RescaleSlope": 0},
    "3 samples a pixel": {"SamplesPerPixel": 3},
    "60000x60000 pixels": {"Rows": 60000, "Columns": 60000},
    "no Hounsfield units": {"stored": b"\0" * 2 * 64 * 64},
    "unreadable": {"PixelData": b"\0" * 100},
    "deflated transfer syntax": {"syntax": DeflatedExplicitVRLittleEndian},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_file_that_is_no_axial_ct_slice_is_refused_with_the_reason(tmp_path, reason):
    file = write_slice(tmp_path / "broken.dcm", SMALL, **BROKEN[reason])
    with pytest.raises(DicomError, match=reason):
        read_slice(str(file))


@pytest.mark.parametrize("kind", ["JPEG 2000 of noise", "cut", "noise", "empty", "missing", "noise after a header"])
def test_a_damaged_file_is_refused_with_the_reason(tmp_path, kind):
    path = tmp_path / "damaged.dcm"
    if kind == "JPEG 2000 of noise":
        write_slice(path, SMALL, syntax=JPEG2000Lossless, stored=encapsulate([random.Random(0).randbytes(500)]))
    elif kind == "cut":
        whole = write_slice(path, SMALL).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "noise after a header":
        path.write_bytes(write_slice(path, SMALL).read_bytes()[:400] + random.Random(0).randbytes(3000))
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else random.Random(0).randbytes(5000))
    with pytest.raises(DicomError, match="unreadable|not a DICOM file|instead of|no rescale"):
        read_slice(str(path))


def test_the_index_names_each_file_by_its_series_or_its_fault(tmp_path):
    write_slice(tmp_path / "b" / "1.dcm", SMALL, SOPInstanceUID="1.1", InstanceNumber=4)
    write_slice(tmp_path / "a" / "2", SMALL, SOPInstanceUID="1.2", ImagePositionPatient=None)
    write_slice(tmp_path / "c.dcm", SMALL, SeriesInstanceUID="1.9", SOPInstanceUID="1.3")
    (tmp_path / "noise.dcm").write_bytes(b"noise")
    (tmp_path / "LICENSE").write_text("CC BY 3.0")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "c.dcm")
    series, faults = index_dicom(tmp_path)
    assert {uid: [file.sop_instance_uid for file in files] for uid, files in series.items()} == {
        "1.2": ["1.2", "1.1"],
        "1.9": ["1.3"],
    }
    without_position, with_position = series["1.2"]
    assert without_position.z_mm is None
    assert (with_position.z_mm, with_position.instance_number, with_position.patient_id) == (0, 4, "LIDC-IDRI-0000")
    assert faults == [(str(tmp_path / "noise.dcm"), "not a DICOM file")]


def test_the_description_of_an_error_names_no_path_and_no_address():
    assert describe_error(ValueError("'/home/a/b.dcm' of\n<object at 0x7f00>")) == "ValueError: ... of ..."
    assert describe_error(FileNotFoundError(2, "No such file", "/home/a")) == "FileNotFoundError: No such file"
