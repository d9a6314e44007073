"""Every form of a map gives the same labels, or the same refusal, at every entrance."""

import sys

import numpy as np
import pytest
from PIL import Image

from lsdm_diffusers import generate
from lsdm_diffusers.data.ct_folder import read_own_map
from lsdm_diffusers.io.export import save_nifti
from lsdm_diffusers.io.map_upload import read_map_upload
from lsdm_diffusers.labels import PALETTE
from lsdm_diffusers.map_file import read_map_file
from lsdm_diffusers.map_image import LABEL_TABLES, labels_from_colours
from lsdm_diffusers.semantic_map import read_semantic_map, semantic_map_image

from .conftest import sample, tiny_pipeline


@pytest.fixture
def labels():
    """128x160, not symmetric: all labels, high density touching soft tissue only."""
    labels = np.zeros((128, 160), np.uint8)
    labels[6:120, 8:150] = 1
    labels[12:112, 16:140] = 2
    labels[20:100, 24:130] = 4
    labels[104:110, 60:80] = 3
    labels[30:40, 30:42] = 5
    labels[50:56, 90:97] = 6
    labels[70:90, 100:115] = 7
    return labels


def with_palette(labels, palette):
    image = Image.fromarray(labels).convert("P")
    image.putpalette(np.asarray(palette, dtype=np.uint8).flatten().tolist())
    return image


def by_index(labels, order, palette):
    """A palette image in which label l has the index `order[l]` and the colour `palette[l]`."""
    shown = np.zeros((len(order), 3), np.uint8)
    shown[order] = np.asarray(palette).reshape(len(order), -1)
    return with_palette(np.array(order, np.uint8)[labels], shown)


ORDER = [3, 6, 0, 7, 1, 2, 5, 4]
VOC = [[(index >> bit & 1) * 128 for bit in range(3)] for index in range(8)]
PRIMARIES_FIRST = 255 * np.array(LABEL_TABLES[0])
GREY_RAMP = [[index * 36] * 3 for index in range(8)]
IMAGES = {
    "grey": Image.fromarray,
    "grey of 16 bits": lambda labels: Image.fromarray(labels.astype(np.uint16)),
    "grey in three channels": lambda labels: Image.fromarray(np.dstack([labels] * 3)),
    "palette of ours": semantic_map_image,
    "palette in another order": lambda labels: by_index(labels, ORDER, PALETTE),
    "palette moved a little": lambda labels: by_index(labels, ORDER, np.clip(PALETTE.astype(int) + 4, 0, 255)),
    "8 quantised colours": lambda labels: Image.fromarray(PALETTE[labels]).quantize(8),
    "8 quantised colours, octree": lambda labels: Image.fromarray(PALETTE[labels]).quantize(8, method=2),
    "adaptive palette": lambda labels: Image.fromarray(PALETTE[labels]).convert("P", palette=1, colors=8),
    "palette of grey values in another order": lambda labels: by_index(labels, ORDER, np.repeat(range(8), 3)),
    "grey ramp": lambda labels: with_palette(labels, GREY_RAMP),
    "black": lambda labels: with_palette(labels, [0] * 24),
    "primaries first": lambda labels: with_palette(labels, PRIMARIES_FIRST),
    "PASCAL VOC": lambda labels: with_palette(labels, VOC),
    "colours": lambda labels: Image.fromarray(PALETTE[labels]),
    "transparent background": lambda labels: Image.fromarray(
        np.dstack([np.where(labels[..., None], PALETTE[labels], 255), 255 * (labels > 0)]).astype(np.uint8)
    ),
}
FOREIGN = "palette that is neither that of the legend nor grey"
WRONG_IMAGES = {
    "foreign palette": (FOREIGN, lambda labels: by_index(labels, range(8), 255 - PALETTE)),
    "grey ramp in another order": (FOREIGN, lambda labels: by_index(labels, ORDER, GREY_RAMP)),
    "one colour for all nodules": (FOREIGN, lambda labels: with_palette(labels, PALETTE[[0, 1, 2, 3, 4, 7, 7, 7]])),
    "index without colour": (FOREIGN, lambda labels: with_palette(labels, PALETTE[:7])),
    "colour picture": ("colour picture and not a", lambda labels: Image.fromarray(255 - PALETTE[labels])),
    "red nodule": (
        r"has the colour \(255, 0, 0\) at row 72, column 102",
        lambda labels: Image.fromarray(
            np.where(labels[..., None] == 7, [255, 0, 0], PALETTE[labels]).astype(np.uint8)
        ),
    ),
    "one bit": ('mode "1"', lambda labels: Image.fromarray(labels > 0)),
}


def generated_map(path, monkeypatch):
    """The map that `lsdm-generate` writes beside its slices, without the writing."""
    written = []
    monkeypatch.setattr(generate, "load_pipeline", lambda *_: tiny_pipeline())
    monkeypatch.setattr(generate, "save_slices", lambda folder, maps, *_: written.extend(maps.values()) or [])
    try:
        generate.main(["--semantic_map", str(path), "--num_inference_steps", "1", "--output", str(path.parent / "o")])
    except SystemExit as end:
        raise ValueError(end.code) from None
    return written[0]


def entrances(path, monkeypatch):
    return {
        "read_semantic_map": lambda: read_semantic_map(path),
        "path as text": lambda: read_semantic_map(str(path)),
        "pipeline": lambda: tiny_pipeline()._read_maps([path], 32)[0],
        "prepare_ct": lambda: read_own_map(path, (128, 160)),
        "upload": lambda: read_map_upload(path).semantic_map,
        "lsdm-generate": lambda: generated_map(path, monkeypatch),
    }


def assert_read_everywhere(path, labels, monkeypatch):
    for entrance, read in entrances(path, monkeypatch).items():
        result = read()
        assert result.dtype == np.uint8, entrance
        np.testing.assert_array_equal(result, labels, err_msg=entrance)


def assert_refused_everywhere(path, message, monkeypatch):
    for read in entrances(path, monkeypatch).values():
        with pytest.raises(ValueError, match=message) as refusal:
            read()
        assert "\n" not in str(refusal.value) and str(path.parent) not in str(refusal.value)


@pytest.mark.parametrize("form", IMAGES)
def test_an_image_is_read_everywhere(form, labels, tmp_path, monkeypatch):
    image = IMAGES[form](labels)
    np.testing.assert_array_equal(read_semantic_map(image), labels)
    image.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as opened:
        np.testing.assert_array_equal(tiny_pipeline()._read_maps(opened, 32)[0], labels)
    assert_read_everywhere(tmp_path / "map.png", labels, monkeypatch)


@pytest.mark.parametrize("form", WRONG_IMAGES)
def test_an_image_that_is_no_map_is_refused_everywhere(form, labels, tmp_path, monkeypatch):
    message, make = WRONG_IMAGES[form]
    with pytest.raises(ValueError, match="`semantic_map` .*" + message):
        read_semantic_map(make(labels))
    make(labels).save(tmp_path / "map.png")
    assert_refused_everywhere(tmp_path / "map.png", message, monkeypatch)


def test_a_pipeline_call_reads_a_quantised_palette_by_colour(labels):
    quantised = Image.fromarray(PALETTE[labels]).quantize(8)
    assert (np.asarray(quantised) != labels).mean() > 0.5
    of_labels, of_colours = (sample(tiny_pipeline(), form) for form in (labels, quantised))
    np.testing.assert_array_equal(of_colours, of_labels)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_read_everywhere(bits, labels, tmp_path, monkeypatch):
    """Pillow spreads such values over 0..255; 85 is label 1 of two bits and label 5 of four."""
    labels = np.minimum(labels, 2**bits - 1)
    Image.fromarray(labels).save(tmp_path / "map.png", bits=bits)
    assert_read_everywhere(tmp_path / "map.png", labels, monkeypatch)


def test_a_jpeg_is_refused_everywhere_with_the_way_to_a_png(labels, tmp_path, monkeypatch):
    for image in (Image.fromarray(labels), Image.fromarray(PALETTE[labels])):
        image.save(tmp_path / "map.jpg", quality=100)
        assert_refused_everywhere(tmp_path / "map.jpg", "is a JPEG.*save the map as PNG.*DICOM", monkeypatch)
        with Image.open(tmp_path / "map.jpg") as opened, pytest.raises(ValueError, match="`semantic_map` is a JPEG"):
            read_semantic_map(opened)


def test_an_npy_file_is_read_everywhere(labels, tmp_path, monkeypatch):
    np.save(tmp_path / "map.npy", labels.astype(np.int64))
    assert_read_everywhere(tmp_path / "map.npy", labels, monkeypatch)


def test_a_stack_of_maps_is_no_map_of_the_command(labels, tmp_path, monkeypatch):
    np.save(tmp_path / "maps.npy", np.stack([labels, labels]))
    assert read_semantic_map(tmp_path / "maps.npy").shape == (2, 128, 160)
    with pytest.raises(ValueError, match=r"--semantic_map` has shape \(2, 128, 160\), but one map"):
        generated_map(tmp_path / "maps.npy", monkeypatch)
    with pytest.raises(ValueError, match="has 2x128x160 pixels, the slice 128x160"):
        read_own_map(tmp_path / "maps.npy", (128, 160))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_one_hot_map_is_refused_everywhere(dtype, labels, tmp_path, monkeypatch):
    for one_hot, axis in ((np.eye(8, dtype=dtype)[labels], -1), (np.eye(8, dtype=dtype)[:, labels], -3)):
        np.testing.assert_array_equal(one_hot.argmax(axis), labels)
        np.save(tmp_path / "map.npy", one_hot)
        message = rf"one-hot map of shape \(.*, but one label a pixel is needed: `argmax\({axis}\)`"
        assert_refused_everywhere(tmp_path / "map.npy", message, monkeypatch)
        for several in (one_hot, one_hot[None]):
            with pytest.raises(ValueError, match=r"`semantic_map` is a one-hot.*argmax"):
                read_semantic_map(several)


def test_eight_maps_are_a_stack(labels):
    stack = np.stack([labels > 0] * 8).astype(np.uint8)
    np.testing.assert_array_equal(read_semantic_map(stack), stack)


@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_a_nifti_slice_is_read_everywhere_as_its_header_turns_it(name, labels, tmp_path, monkeypatch):
    import nibabel

    save_nifti(labels.astype(np.int16), tmp_path / name)
    assert_read_everywhere(tmp_path / name, labels, monkeypatch)
    # stored to the right and the front of the patient, as decimal numbers
    turned = labels[::-1, ::-1].T[:, :, None].astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(turned, np.diag([0.7, 0.7, 1, 1])), tmp_path / name)
    assert_read_everywhere(tmp_path / name, labels, monkeypatch)


def test_other_nifti_files_are_refused_everywhere(labels, tmp_path, monkeypatch):
    import nibabel

    path, affine = tmp_path / "map.nii.gz", np.diag([0.7, 0.7, 1, 1])
    for message, array in {
        r"shape \(160, 128, 3\), but one axial slice": np.dstack([labels.T] * 3),
        r"shape \(1, 160, 128\), but one axial slice": labels.T[None],
        "-1000": np.full((160, 128, 1), -1000, np.int16),
        "more than 64 MB": np.zeros((5000, 5000, 3), np.uint8),
    }.items():
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        assert_refused_everywhere(path, message, monkeypatch)
    image = nibabel.Nifti1Image(labels.T[:, :, None], None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, path)
    assert_refused_everywhere(path, "without orientation", monkeypatch)
    save_nifti(labels.astype(np.int16), tmp_path / "map.nii")
    path.with_suffix("").write_bytes((tmp_path / "map.nii").read_bytes()[:9000])
    assert_refused_everywhere(path.with_suffix(""), "damaged or cut off", monkeypatch)


def test_nifti_without_nibabel_names_the_extra(labels, tmp_path, monkeypatch):
    save_nifti(labels.astype(np.int16), tmp_path / "map.nii")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert_refused_everywhere(tmp_path / "map.nii", r'nibabel: pip install "lsdm_diffusers\[demo\]"', monkeypatch)


def test_a_file_that_is_no_map_names_the_argument(labels, tmp_path):
    (tmp_path / "map.txt").write_text("no map")
    with pytest.raises(ValueError, match="`semantic_map` is map.txt, but a PNG, a .npy file or a NIfTI"):
        read_map_file(tmp_path / "map.txt")
    np.save(tmp_path / "map.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="`semantic_map` is map.npy, but .* something other than numbers"):
        read_map_file(tmp_path / "map.npy")
    semantic_map_image(labels).save(tmp_path / "map.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "map.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="`semantic_map` is half.png, but that picture is damaged"):
        read_map_file(tmp_path / "half.png")
    np.save(tmp_path / "hu.npy", np.full((64, 64), -1000))
    with pytest.raises(ValueError, match="`semantic_map` contains the value -1000"):
        read_semantic_map(tmp_path / "hu.npy")


def test_a_drawing_keeps_its_labels_where_edges_are_blended(labels):
    large = PALETTE[labels.repeat(4, 0).repeat(4, 1)]
    blended = np.asarray(Image.fromarray(large).resize((160, 128), Image.Resampling.BOX))
    np.testing.assert_array_equal(labels_from_colours(blended), labels)
