"""CT slices from DICOM, whole and broken."""

import io
import random
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from lsdm_diffusers.io.dicom import DicomError, describe_error, index_dicom, read_slice

from ..synthetic_dicom import thorax_hu, write_slice

FIXTURES = Path(__file__).parents[1] / "fixtures"


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


@pytest.mark.parametrize(
    ("stream", "syntax"),
    [
        ("jpeg-lossless", JPEGLosslessSV1),
        ("jpeg-ls", JPEGLSLossless),
        ("htj2k", HTJ2KLossless),
        ("htj2k", HTJ2K),
    ],
)
def test_the_extra_decodes_what_scanners_compress_without_loss(tmp_path, stream, syntax):
    """The streams hold these pixels; imagecodecs wrote them (ljpeg_encode, jpegls_encode, htj2k_encode)."""
    pytest.importorskip("libjpeg", reason='needs pip install ".[dicom]"')
    pytest.importorskip("openjpeg", reason='needs pip install ".[dicom]"')
    stored = np.random.default_rng(0).integers(0, 4000, (32, 32)).astype(np.int16)
    encoded = encapsulate([(FIXTURES / "compressed" / f"{stream}.bin").read_bytes()])
    file = write_slice(tmp_path / "a.dcm", stored - 1024, syntax=syntax, stored=encoded)
    np.testing.assert_array_equal(read_slice(str(file)).hu, stored - 1024)


SMALL = thorax_hu()[::8, ::8]
BROKEN = {
    "modality 'MR' instead of CT": {"Modality": "MR"},
    "3 frames in one file without functional groups": {
        "NumberOfFrames": 3,
        "stored": (SMALL.astype(int) + 1024).astype(np.uint16).tobytes() * 3,
    },
    "is not that of an axial slice": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    "of an axial slice": {"ImageOrientationPatient": [0.7, 0.7, 0, -0.7, 0.7, 0]},
    "no ImageOrientationPatient in the header": {"ImageOrientationPatient": None},
    "no PixelSpacing in the header": {"PixelSpacing": None},
    "no Hounsfield units of a chest CT slice": {
        **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleIntercept": 0},
        "stored": np.clip((SMALL.astype(int) + 1350) * 255 // 1500, 59, 255).astype(np.uint8).tobytes(),
    },
    "orientation .*nan": {"ImageOrientationPatient": ["nan", 0, 0, 0, 1, 0]},
    "but square pixels of": {"PixelSpacing": [0.7, 0.9]},
    "0.001 x 0.001 mm": {"PixelSpacing": [0.001, 0.001]},
    "rescale type 'mg/ml'": {"RescaleType": "mg/ml"},
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


def with_text(path, tag, text):
    """The file with the raw text as the value of a decimal string, which pydicom would not write."""
    dataset = pydicom.dcmread(path)
    del dataset[tag]
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    value = text.encode() + b" " * (len(text) % 2)
    element = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"DS", len(value)) + value
    following = next(other.tag for other in dataset if other.tag > tag)
    place = content.getvalue().index(struct.pack("<HH", following.group, following.element), 300)
    path.write_bytes(content.getvalue()[:place] + element + content.getvalue()[place:])
    return path


PIXEL_SPACING, SLICE_THICKNESS, INSTANCE_NUMBER = 0x00280030, 0x00180050, 0x00200013


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_field_with_a_comma_is_named(tmp_path):
    path = with_text(write_slice(tmp_path / "a.dcm", SMALL), PIXEL_SPACING, "0,7\\0,7")
    with pytest.raises(DicomError, match=r"PixelSpacing '0,7\\0,7' in the header, but 2 numbers are needed"):
        read_slice(str(path))
    series, _ = index_dicom(tmp_path)
    assert series["1.2"][0].fault == r"PixelSpacing '0,7\0,7' in the header, but 2 numbers are needed"


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    ("tag", "text"), [(SLICE_THICKNESS, "2.5mm"), (SLICE_THICKNESS, "0"), (SLICE_THICKNESS, "nan")]
)
def test_a_label_that_is_no_number_refuses_no_slice(tmp_path, tag, text):
    ct = read_slice(str(with_text(write_slice(tmp_path / "a.dcm", SMALL), tag, text)))
    assert ct.slice_thickness_mm is None
    np.testing.assert_array_equal(ct.hu, SMALL)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_an_instance_number_that_is_no_number_refuses_no_slice(tmp_path):
    path = with_text(write_slice(tmp_path / "a.dcm", SMALL), INSTANCE_NUMBER, "anon1")
    np.testing.assert_array_equal(read_slice(str(path)).hu, SMALL)
    series, faults = index_dicom(tmp_path)
    assert (series["1.2"][0].instance_number, series["1.2"][0].fault, faults) == (0, None, [])


AIR_ROWS = np.arange(64)[:, None] < 5


@pytest.mark.parametrize(
    ("padding", "tags"),
    [
        (4095, {"PixelPaddingValue": 4095, "BitsStored": 12, "HighBit": 11}),
        (2000, {"PixelPaddingValue": 2000}),
        (2001, {"PixelPaddingValue": 1990, "PixelPaddingRangeLimit": 2010}),
        (63536, {}),
        (65535, {}),
    ],
)
def test_padding_becomes_air(tmp_path, padding, tags):
    """Also inside the range of HU, where it is joined to the border; the same value in the body stays."""
    stored = (SMALL.astype(int) + 1024).astype(np.uint16)
    expected = np.where(AIR_ROWS, -1024, SMALL)
    stored[:5] = padding
    if padding < 4096:
        stored[32, 32], expected[32, 32] = padding, padding - 1024
    file = write_slice(tmp_path / "a.dcm", SMALL, stored=stored.tobytes(), **tags)
    np.testing.assert_array_equal(read_slice(str(file)).hu, expected)


def test_padding_of_zero_without_intercept_becomes_air(tmp_path):
    stored = SMALL.copy()
    stored[:5] = stored[30:34, 30:34] = 0
    expected = np.where(AIR_ROWS, -1024, stored)
    tags = {"PixelRepresentation": 1, "RescaleIntercept": 0, "PixelPaddingValue": 0}
    file = write_slice(tmp_path / "a.dcm", SMALL, stored=stored.tobytes(), **tags)
    np.testing.assert_array_equal(read_slice(str(file)).hu, expected)


def test_an_8_bit_picture_with_padding_is_still_refused(tmp_path):
    grey = np.clip((SMALL.astype(int) + 1350) * 255 // 1500, 59, 255).astype(np.uint8)
    grey[:5] = 0
    tags = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleIntercept": 0, "PixelPaddingValue": 0}
    file = write_slice(tmp_path / "a.dcm", SMALL, stored=grey.tobytes(), **tags)
    with pytest.raises(DicomError, match="values 59..236 are no Hounsfield units|values 59..255"):
        read_slice(str(file))


LEFT, RIGHT, BACK, FRONT = [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]


@pytest.mark.parametrize(
    ("orientation", "stored", "name"),
    [
        (LEFT + BACK, lambda hu: hu, "standard"),
        (RIGHT + FRONT, lambda hu: hu[::-1, ::-1], "turned by 180 degrees"),
        (LEFT + FRONT, lambda hu: hu[::-1], "order of rows reversed"),
        (RIGHT + BACK, lambda hu: hu[:, ::-1], "order of columns reversed"),
        (BACK + LEFT, lambda hu: hu.T, "rows and columns exchanged"),
        (BACK + RIGHT, lambda hu: hu.T[::-1], "rows and columns exchanged, order of columns reversed"),
        (FRONT + LEFT, lambda hu: hu.T[:, ::-1], "rows and columns exchanged, order of rows reversed"),
    ],
)
def test_slices_are_turned_to_the_standard_orientation_by_their_header(tmp_path, orientation, stored, name):
    hu = SMALL[:, :48].copy()
    hu[3:9, 4:20] = 700  # nothing is symmetric
    pixels = np.ascontiguousarray(stored(hu))
    ct = read_slice(str(write_slice(tmp_path / "a.dcm", pixels, ImageOrientationPatient=orientation)))
    np.testing.assert_array_equal(ct.hu, hu)
    assert str(ct.orientation) == name
    np.testing.assert_array_equal(ct.orientation.turn(pixels == 700), hu == 700)
    assert ct.orientation.stored_shape(ct.hu.shape) == pixels.shape
    ((file,),) = index_dicom(tmp_path)[0].values()
    assert file.orientation == ct.orientation


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble_and_suffix_are_read(tmp_path, syntax):
    whole = pydicom.dcmread(write_slice(tmp_path / "whole.dcm", SMALL, syntax=syntax))
    bare = pydicom.Dataset()
    bare.update(whole)
    path = tmp_path / "IM0001"
    bare.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True, enforce_file_format=False)
    (tmp_path / "whole.dcm").unlink()
    (tmp_path / "other").write_bytes(b"\x08\x00" + bytes(50))
    np.testing.assert_array_equal(read_slice(str(path)).hu, SMALL)
    series, faults = index_dicom(tmp_path)
    assert [file.path for file in series["1.2"]] == [str(path)] and faults == []


def test_links_are_followed_and_broken_ones_named(tmp_path):
    """As git-annex and datalad keep files: links into a store, some without their content."""
    store = tmp_path / "store"
    write_slice(store / "x1", SMALL, SOPInstanceUID="1.1")
    write_slice(store / "series" / "x2", SMALL, SOPInstanceUID="1.2")
    folder = tmp_path / "dicom"
    folder.mkdir()
    (folder / "1").symlink_to(store / "x1")
    (folder / "linked series").symlink_to(store / "series")
    (folder / "2").symlink_to(store / "absent")
    (folder / "loop").symlink_to(folder)
    series, faults = index_dicom(folder)
    assert [file.path for file in series["1.2"]] == [str(folder / "1"), str(folder / "linked series" / "x2")]
    assert faults == [(str(folder / "2"), "link to a file that is absent")]


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, HTJ2KLossless])
def test_the_decoders_that_are_missing_are_named(tmp_path, syntax, monkeypatch):
    monkeypatch.setattr(get_decoder(syntax), "_available", {})
    file = write_slice(tmp_path / "a.dcm", SMALL, syntax=syntax, stored=encapsulate([b"\xff\xd8" + bytes(98)]))
    with pytest.raises(DicomError, match=r'needs decoders: pip install "lsdm_diffusers\[dicom\]"'):
        read_slice(str(file))


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
