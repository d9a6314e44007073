"""`lsdm-generate --volume`: from a volume of maps to NIfTI and a DICOM series, in place."""

import json

import nibabel
import numpy as np
import PIL.Image
import pytest

from lsdm_diffusers import generate, generate_volume
from lsdm_diffusers.io.dicom import read_series
from lsdm_diffusers.io.volume_files import centred_affine, read_map_volume

from .conftest import tiny_pipeline

AFFINE = np.array([[-0.8, 0, 0, 30], [0, -0.8, 0, 20], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])


@pytest.fixture
def labels():
    labels = np.zeros((4, 64, 72), dtype=np.uint8)
    labels[:, 4:60, 4:68] = 2
    labels[:, 8:56, 8:60] = 4
    labels[1:3, 32:38, 32:38] = 7
    labels[3, 4:8] = 3
    return labels


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(generate_volume, "load_pipeline", lambda *_: tiny_pipeline())

    def call(source, *more):
        flags = ["--volume", "--num_inference_steps", "1", "--output", str(tmp_path / "out")]
        generate.main([*flags, "--semantic_map", str(source), *map(str, more)])
        return tmp_path / "out"

    return call


def save(labels, path, affine=AFFINE, turn=lambda image: image):
    turn(nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine)).to_filename(path)
    return path


@pytest.mark.parametrize("turn", [lambda image: image, nibabel.as_closest_canonical], ids=["LPS", "RAS"])
def test_slices_lie_where_the_maps_do(run, labels, tmp_path, turn):
    """The slices have the affine of the maps, whatever the order of the file's axes, and the series the same place."""
    source = save(labels, tmp_path / "maps.nii.gz", turn=turn)
    out = run(source, "--format", "nifti", "dicom", "npy", "--malignancy", "benign")
    volume, maps = (nibabel.load(out / f"{name}.nii.gz") for name in ("volume", "semantic_maps"))
    np.testing.assert_allclose(volume.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(maps.dataobj).transpose(2, 1, 0), labels)
    hu = np.asarray(volume.dataobj).transpose(2, 1, 0)
    assert hu.dtype == np.int16 and hu.shape == labels.shape
    np.testing.assert_array_equal(np.load(out / "volume.npy"), hu)
    parameters = json.loads((out / "parameters.json").read_text())
    assert parameters["slice_spacing_mm"] == 2.5 and parameters["nodule_features"] == {"malignancy": "benign"}
    assert PIL.Image.open(out / "cuts.png").size[0] > 500
    assert len(list((out / "dicom").glob("*.dcm"))) == 4


def test_the_series_is_read_back_at_its_place(tmp_path):
    from lsdm_diffusers.io.volume_files import save_dicom_series

    from .synthetic_series import series_hu

    hu = np.clip(series_hu(3), -1024, 3071)
    save_dicom_series(hu, tmp_path / "dicom", AFFINE, 0.8, 2.5)
    series = read_series(tmp_path / "dicom")
    np.testing.assert_array_equal(series.hu, hu)
    np.testing.assert_allclose(series.nifti_affine, AFFINE)


def test_a_folder_of_maps_is_a_volume(run, labels, tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    for index, one in enumerate(labels):
        PIL.Image.fromarray(one).save(folder / f"{index:03d}.png")
    out = run(folder, "--pixel_spacing", 0.7, "--slice_spacing_mm", 3)
    volume = nibabel.load(out / "volume.nii.gz")
    np.testing.assert_allclose(volume.affine, centred_affine((4, 64, 72), 0.7, 3))
    middle = volume.affine @ [35.5, 31.5, 1.5, 1]
    np.testing.assert_allclose(middle[:3], 0, atol=1e-5)
    np.testing.assert_array_equal(read_map_volume(folder, 0.7, 3.0).labels, labels)


def test_bad_input_gets_one_sentence_and_nothing_is_written(run, labels, tmp_path):
    source = save(labels, tmp_path / "maps.nii")
    oblique = AFFINE.copy()
    oblique[:3, :3] = AFFINE[:3, :3] @ np.array([[0.9, 0.436, 0], [-0.436, 0.9, 0], [0, 0, 1]])
    flat = np.diag([-0.8, -1.2, 2.5, 1.0])
    (tmp_path / "text.nii").write_text("text")
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "absent.nii", [], "absent.nii, but a NIfTI file"),
        (source, ["--pixel_spacing", 0.7], "states its spacings"),
        (source, ["--num_images", 2], "`--num_images` is 2"),
        (source, ["--num_inference_steps", 0], "`--num_inference_steps` is 0"),
        (tmp_path / "text.nii", [], "no NIfTI file"),
        (tmp_path / "empty", ["--pixel_spacing", 0.7], "`slice_spacing_mm` is needed"),
        (tmp_path / "empty", ["--pixel_spacing", 0.7, "--slice_spacing_mm", 2], "no PNG and no"),
        (tmp_path / "empty", ["--pixel_spacing", 0.7, "--slice_spacing_mm", 0], "`slice_spacing_mm` is 0"),
        (save(labels, tmp_path / "oblique.nii", oblique), [], "do not run along"),
        (save(labels, tmp_path / "flat.nii", flat), [], "square pixels are needed"),
        (save(labels + 5, tmp_path / "labels.nii"), [], "12|8|9|0..7"),
    ]
    for path, more, message in cases:
        with pytest.raises(SystemExit, match=message) as end:
            run(path, *more)
        assert "\n" not in str(end.value.code)
        assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="for `--volume` alone"):
        generate.main(["--slice_spacing_mm", "2", "--output", str(tmp_path / "out")])
