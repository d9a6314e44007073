"""Uploaded files, good, wrong and harmful, as semantic maps."""

import gzip
import io
import os
import resource
import struct
import zlib
from itertools import count

import cv2
import numpy as np
import PIL.Image
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from lsdm_diffusers.demo.example_maps import example_maps
from lsdm_diffusers.io.export import export_ct
from lsdm_diffusers.io.map_upload import read_map_upload
from lsdm_diffusers.labels import PALETTE
from lsdm_diffusers.map_image import labels_from_colours
from lsdm_diffusers.segmentation import semantic_map_from_hu
from lsdm_diffusers.semantic_map import find_nodules, semantic_map_image

from ..synthetic_dicom import thorax_hu, write_slice


@pytest.fixture
def labels():
    """192x256: body, lung, bone, and nodules of 5 and 3 pixels."""
    labels = np.zeros((192, 256), np.uint8)
    labels[10:180, 10:240] = 1
    labels[20:170, 20:230] = 2
    labels[30:160, 30:220] = 4
    labels[160:170, 100:130] = 3
    labels[60:65, 60:65] = 5
    labels[90:93, 90:93] = 6
    labels[120:125, 120:125] = 7
    return labels


def saved(path, image, **options):
    (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, idat, bit_depth=8, more=b""):
    header = struct.pack(">IIBBBBB", width, height, bit_depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def npy(shape, descr="<i2", content=b""):
    header = str({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def test_a_map_is_read_however_it_is_stored(labels, tmp_path):
    palette = semantic_map_image(labels)
    shuffled = palette.remap_palette([7, 6, 5, 4, 3, 2, 1, 0])
    assert np.asarray(shuffled)[0, 0] == 7
    foreign = palette.copy()
    foreign.putpalette(
        [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0, 0, 255, 255, 255, 0, 255, 255, 255, 255]
    )
    black = palette.copy()
    black.putpalette([0] * 24)
    transparent = np.dstack([PALETTE[labels], np.where(labels == 0, 0, 255)]).astype(np.uint8)
    rows = [b"\0" + bytes((row[::2] << 4) | row[1::2]) for row in labels]  # four bits a pixel
    (tmp_path / "few-bits.png").write_bytes(png(256, 192, zlib.compress(b"".join(rows)), bit_depth=4))
    np.save(tmp_path / "labels.npy", labels.astype(np.int64))
    paths = [
        saved(tmp_path / "grey.png", labels),
        saved(tmp_path / "grey16.png", labels.astype(np.uint16)),
        saved(tmp_path / "grey-as-colour.png", np.dstack([labels] * 3)),
        saved(tmp_path / "palette.png", palette),
        saved(tmp_path / "order-of-a-paint-program.png", shuffled),
        saved(tmp_path / "other-colours.png", foreign),
        saved(tmp_path / "black.png", black),
        saved(tmp_path / "colours.png", PALETTE[labels]),
        saved(tmp_path / "transparent.png", transparent),
        saved(tmp_path / "named-otherwise.dcm", labels, format="png"),
        tmp_path / "few-bits.png",
        tmp_path / "labels.npy",
    ]
    for path in paths:
        upload = read_map_upload(path)
        np.testing.assert_array_equal(upload.semantic_map, labels, err_msg=path.name)
        assert upload.semantic_map.dtype == np.uint8 and upload.kind == "map" and upload.hu is None
        assert upload.pixel_spacing == 0.7 and "0.7 mm is assumed" in upload.message
    upload = read_map_upload(paths[0], pixel_spacing=0.9)
    assert upload.pixel_spacing == 0.9 and "assumed" not in upload.message


@pytest.mark.parametrize("blend", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA])
def test_an_antialiased_edge_makes_no_third_label(blend):
    """Discs of each label lie in each other label; high density blended with soft tissue looks like body."""
    for inside in range(8):
        for outside in {*range(8)} - {inside}:
            large = np.full((256, 256), outside, np.uint8)
            cv2.circle(large, (128, 128), 90, inside, -1)
            blended = cv2.resize(PALETTE[large], (100, 100), interpolation=blend)
            if blend != cv2.INTER_AREA:
                blended = cv2.resize(
                    cv2.resize(PALETTE[large], (64, 64), interpolation=cv2.INTER_NEAREST),
                    (100, 100),
                    interpolation=blend,
                )
            drawn = labels_from_colours(blended)
            assert set(np.unique(drawn)) == {inside, outside}
            assert (drawn != cv2.resize(large, (100, 100), interpolation=cv2.INTER_NEAREST)).mean() < 0.04


def test_a_ct_slice_gives_its_map_and_hu(tmp_path):
    hu = thorax_hu()
    paths = export_ct(hu, tmp_path, "ct", formats=["npy", "dicom"], pixel_spacing=0.6)
    paths["png"] = saved(tmp_path / "ct.png", (hu + 1024).astype(np.uint16))
    np.save(tmp_path / "decimal.npy", np.asfortranarray(hu.astype(">f4")))
    for path in (*paths.values(), tmp_path / "decimal.npy"):
        upload = read_map_upload(path, pixel_spacing=None if path.suffix == ".dcm" else 0.6)
        assert upload.kind == "ct" and upload.pixel_spacing == 0.6
        np.testing.assert_array_equal(upload.hu, hu)
        np.testing.assert_array_equal(upload.semantic_map, semantic_map_from_hu(hu, 0.6))


def test_a_prone_dicom_slice_is_turned_and_the_message_says_so(tmp_path):
    hu = thorax_hu(8)
    stored = np.ascontiguousarray(hu[::-1, ::-1])
    upload = read_map_upload(write_slice(tmp_path / "a.dcm", stored, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0]))
    np.testing.assert_array_equal(upload.hu, hu)
    assert "It was brought to the standard orientation: turned by 180 degrees." in upload.message


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PixelSpacing": None}, "The DICOM file cannot be used: no PixelSpacing in the header."),
        (
            {"ImageOrientationPatient": None},
            "The DICOM file cannot be used: no ImageOrientationPatient in the header.",
        ),
        (
            {
                **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleIntercept": 0},
                "stored": np.clip((thorax_hu().astype(int) + 1350) * 255 // 1500, 59, 255).astype(np.uint8).tobytes(),
            },
            "values 59..255 are no Hounsfield units of a chest CT slice",
        ),
    ],
)
def test_a_dicom_slice_that_cannot_be_used_is_refused_with_the_field(tmp_path, tags, message):
    with pytest.raises(ValueError, match=message):
        read_map_upload(write_slice(tmp_path / "a.dcm", thorax_hu(), **tags))


def test_height_and_width_become_multiples_of_32(labels, tmp_path):
    path = saved(tmp_path / "odd.png", labels[:175, :250])
    upload = read_map_upload(path)
    assert upload.semantic_map.shape == (192, 256) and "padded with background to 256x192" in upload.message
    np.testing.assert_array_equal(upload.semantic_map[8:183, 3:253], labels[:175, :250])
    assert upload.semantic_map.sum() == labels[:175, :250].sum()
    hu = thorax_hu()[5:506, 3:510]
    np.save(tmp_path / "odd.npy", hu)
    upload = read_map_upload(tmp_path / "odd.npy")
    assert upload.hu.shape == upload.semantic_map.shape == (512, 512)
    np.testing.assert_array_equal(upload.hu[5:506, 2:509], hu)
    np.testing.assert_array_equal(upload.semantic_map[5:506, 2:509], semantic_map_from_hu(hu))
    assert upload.hu[0, 0] == -1024


def test_example_maps_are_read_as_they_are():
    for title, path in example_maps().items():
        upload = read_map_upload(path)
        assert upload.kind == "map" and upload.semantic_map.shape == (512, 512)
        assert 0.5 < upload.pixel_spacing < 0.8 and upload.pixel_spacing != 0.7 and "assumed" not in upload.message
        assert (upload.semantic_map == 4).sum() > 20000
        assert bool(find_nodules(upload.semantic_map)) == ("nodule" in title and "no nodule" not in title)


def wrong_files(folder, labels):
    """(message, file) of uploads that give no map."""
    random, number = np.random.default_rng(0), count()
    hu = thorax_hu()
    good_png = io.BytesIO()
    PIL.Image.fromarray(random.integers(0, 8, (256, 256), dtype=np.uint8)).save(good_png, "png")
    good_dicom = write_slice(folder / "good.dcm", hu).read_bytes()
    bomb = zlib.compressobj(9)
    bomb = b"".join(bomb.compress(bytes(2**20)) for _ in range(100)) + bomb.flush()
    zeros = zlib.compress(bytes(129 * 128))
    stream = io.BytesIO()
    PIL.Image.new("I;16", (4000, 4000)).save(stream, "jpeg2000")
    jpeg = io.BytesIO()
    PIL.Image.fromarray(PALETTE[labels]).save(jpeg, "jpeg")
    photo = cv2.GaussianBlur(random.integers(0, 256, (256, 256, 3)).astype(np.uint8), (9, 9), 3)
    pickled = io.BytesIO()
    np.save(pickled, np.array([print, None], dtype=object), allow_pickle=True)
    zipped = io.BytesIO()
    np.savez(zipped, hu)
    nan = hu.astype(np.float32)
    nan[3, 4:6] = np.nan
    contents = {
        "empty": ("is empty", b""),
        "text": ("neither PNG, DICOM nor .npy; upload a semantic map", b"hello" * 50),
        "jpeg": ("is a JPEG, which blurs the labels at each edge; save the map as PNG", jpeg.getvalue()),
        "gzip": ("neither PNG, DICOM nor .npy", gzip.compress(good_png.getvalue())),
        "npz": ("neither PNG, DICOM nor .npy", zipped.getvalue()),
        "large": ("20.0 MB, but at most 20 MB|20.1 MB", b"\x89PNG\r\n\x1a\n" + bytes(20_100_000)),
        "png signature alone": ("PNG file is damaged or cut off", good_png.getvalue()[:8]),
        "half png": ("PNG file is damaged or cut off", good_png.getvalue()[: len(good_png.getvalue()) // 2]),
        "png without pixels": ("PNG file is damaged or cut off", good_png.getvalue()[:40]),
        "flipped png": (
            "PNG file is damaged or cut off",
            good_png.getvalue()[:60] + bytes(200) + good_png.getvalue()[260:],
        ),
        "declared bomb": ("40000x40000 pixels, but 128 to 1024 a side", png(40000, 40000, bomb)),
        "zero pixels": ("0x0 pixels", png(0, 0, b"")),
        "text bomb": ("PNG file is damaged", png(128, 128, zeros, more=chunk(b"zTXt", b"a\0\0" + bomb))),
        "many chunks": (
            "much more than the pixels of one slice need",
            png(128, 128, zeros, more=chunk(b"abCd", b"") * 150_000),
        ),
        "spacing": (
            "states an impossible pixel spacing",
            png(128, 128, zeros, more=chunk(b"tEXt", b"pixel_spacing_mm\0nan")),
        ),
        "dicom bomb": ("instead of \\(512, 512\\)", ("PixelData", JPEG2000Lossless, encapsulate([stream.getvalue()]))),
        "half dicom": ("DICOM file is damaged or cut off", good_dicom[: len(good_dicom) // 2]),
        "dicom signature alone": ("DICOM file", good_dicom[:132]),
        "deflated dicom": ("deflated", ("PixelData", DeflatedExplicitVRLittleEndian, None)),
        "large dicom": ("much more than the pixels", good_dicom + bytes(6_000_000)),
        "npy header alone": (".npy file is damaged", npy((256, 256))),
        "half npy": (".npy file is damaged", npy((256, 256), content=bytes(2 * 256 * 128))),
        "npy of a huge shape": (".npy file is damaged", npy((10**9, 10**9), content=bytes(1000))),
        "npy of a negative shape": (".npy file is damaged", npy((-256, -256), content=bytes(1000))),
        "npy with code in its header": (
            ".npy file is damaged",
            b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').abort()".ljust(32) + bytes(99),
        ),
        "pickle": (".npy file is damaged, cut off, or holds something other than numbers", pickled.getvalue()),
    }
    for name, (message, content) in contents.items():
        path = folder / name
        if isinstance(content, tuple):
            stored = {} if content[2] is None else {"stored": content[2]}
            write_slice(path, hu, syntax=content[1], **stored)
        else:
            path.write_bytes(content)
        yield message, path
    for message, array in {
        r"shape \(3, 512, 512\), but one slice": np.stack([hu] * 3),
        r"shape \(\), but one slice": np.float32(0),
        "type complex64": hu.astype(np.complex64),
        "type bool": hu > 0,
        "type str": np.full((128, 128), "a"),
        "2 pixels without a number": nan,
        "values 0 to 1 are not HU": (hu > 0).astype(np.float32),
        "values 24 to 1424 are not HU": hu + 1024,
        "values -1000 to -1000 are not HU": np.full((128, 128), -1000),
        "64x64 pixels, but 128 to 1024 a side": hu[:64, :64],
    }.items():
        path = folder / f"array-{next(number)}.npy"
        np.save(path, array)
        yield message, path
    grey = np.clip((hu.astype(int) + 1024) // 8, 0, 255).astype(np.uint8)
    for message, image in {
        "colour picture and not a semantic map": photo,
        "grey picture with values up to 178, which are neither labels nor HU": grey,
        "grey picture with values up to 178.*upload a semantic map": np.dstack([grey] * 3),
        "grey picture with values up to 8": np.where(labels == 7, 8, labels).astype(np.uint8),
        "values -1016 to -976 are not HU": np.where(labels == 1, 48, 8).astype(np.uint16),
        "background only": np.zeros((128, 128), np.uint8),
        "2048x128 pixels, but 128 to 1024": np.ones((128, 2048), np.uint8),
    }.items():
        yield message, saved(folder / f"image-{next(number)}.png", image)
    yield "modality 'MR' instead of CT", write_slice(folder / "mr.dcm", hu, Modality="MR")
    yield "modality 'imgonerror' instead", write_slice(folder / "html.dcm", hu, Modality="<img&onerror>")
    os.mkfifo(folder / "fifo")
    yield "not a file", folder / "fifo"
    yield "not a file", folder
    yield "cannot be read", folder / "absent.png"


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_each_wrong_file_gets_one_plain_sentence_and_leaves_none(labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uploads").mkdir()
    files = list(wrong_files(tmp_path / "uploads", labels))
    before = sorted(tmp_path.rglob("*"))
    for message, path in files:
        with pytest.raises(ValueError, match=message) as raised:
            read_map_upload(path)
        text = str(raised.value)
        assert text.endswith(".") and "\n" not in text, text
        assert str(tmp_path) not in text and not set(text) & set("<>"), text
    assert sorted(tmp_path.rglob("*")) == before


def test_limits_are_those_asked_for(labels, tmp_path):
    path = saved(tmp_path / "a.png", labels)
    dicom = write_slice(tmp_path / "a.dcm", thorax_hu())
    with pytest.raises(ValueError, match="at most 0.0001 MB"):
        read_map_upload(path, max_bytes=100)
    with pytest.raises(ValueError, match="256x192 pixels"):
        read_map_upload(path, max_pixels=10_000)
    with pytest.raises(ValueError, match="at most 10000 in all"):
        read_map_upload(dicom, max_pixels=10_000)
    with pytest.raises(ValueError, match="`pixel_spacing` is 7"):
        read_map_upload(path, pixel_spacing=7)


def test_a_png_that_unpacks_to_more_than_its_header_says_costs_no_more(tmp_path):
    packer = zlib.compressobj(9)
    rows = (b"\0" + bytes([1] * 128)) * 128
    packed = packer.compress(rows) + b"".join(packer.compress(bytes(2**20)) for _ in range(100)) + packer.flush()
    (tmp_path / "bomb.png").write_bytes(png(128, 128, packed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (read_map_upload(tmp_path / "bomb.png").semantic_map == 1).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024  # KiB


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # pydicom warns of each odd element
def test_any_damage_ends_in_a_sentence_or_a_map(labels, tmp_path):
    random = np.random.default_rng(1)
    hu = thorax_hu()[::4, ::4]
    np.save(tmp_path / "a.npy", hu)
    files = [
        saved(tmp_path / "a.png", labels),
        saved(tmp_path / "b.png", semantic_map_image(labels)),
        tmp_path / "a.npy",
    ]
    files.append(write_slice(tmp_path / "a.dcm", hu))
    for file in files:
        content = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(25):
            damaged = content.copy()
            places = random.integers(0, min(len(content), 600), 4)
            damaged[places] = random.integers(0, 256, 4)
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            try:
                assert read_map_upload(tmp_path / "damaged").semantic_map.max() < 8
            except ValueError as error:
                assert str(error).endswith(".")
