"""CT slices from DICOM, whole and broken, and their images in the dataset."""

import io
import random

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from lsdm_diffusers.data.dataset import decode_image, encode_image
from lsdm_diffusers.io.dicom import DicomError, read_slice

from ..synthetic_dicom import thorax_hu, write_slice


@pytest.mark.parametrize(("bit_depth", "error"), [(16, 0), (8, 4)])
def test_an_image_comes_back_from_its_png(bit_depth, error):
    hu = np.random.default_rng(0).integers(-1500, 1500, (32, 32))
    back = decode_image(Image.open(io.BytesIO(encode_image(hu, bit_depth))))
    assert np.abs(back - np.clip(hu, -1024, 800)).max() <= error


def test_hounsfield_units_are_those_of_pydicom(tmp_path):
    hu = np.random.default_rng(0).integers(-1024, 3000, (64, 64)).astype(np.int16)
    ct = read_slice(str(write_slice(tmp_path / "a.dcm", hu)))
    np.testing.assert_array_equal(ct.hu, hu)
    assert (ct.pixel_spacing_mm, ct.slice_thickness_mm, ct.contrast_used) == (0.7, 2.5, False)
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
