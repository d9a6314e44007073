"""The console command `lsdm-generate`."""

import errno
import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from lsdm_diffusers import __version__
from lsdm_diffusers.checkpoint import example_map
from lsdm_diffusers.generate import main
from lsdm_diffusers.semantic_map import find_nodules, read_semantic_map

from .conftest import tiny_pipeline


@pytest.fixture
def arguments(tmp_path, semantic_map):
    tiny_pipeline().save_pretrained(tmp_path / "checkpoint")
    PIL.Image.fromarray(semantic_map).save(tmp_path / "map.png")
    common = [
        "--pretrained_model_name_or_path",
        tmp_path / "checkpoint",
        "--semantic_map",
        tmp_path / "map.png",
        "--output",
        tmp_path / "out",
    ]
    return [str(argument) for argument in common] + ["--num_inference_steps", "2"]


def test_command_writes_images_previews_and_parameters(arguments, tmp_path, semantic_map):
    main(
        [
            *arguments,
            "--num_images",
            "2",
            "--malignancy",
            "malignant",
            "--texture",
            "4",
            "--scheduler",
            "EulerDiscreteScheduler",
            "--seed",
            "5",
        ]
    )
    out = tmp_path / "out"
    assert PIL.Image.open(out / "image-1.png").size == (128, 96)
    hu = np.load(out / "image-0.npy")
    assert hu.dtype == np.int16 and hu.shape == (96, 128)
    assert PIL.Image.open(out / "preview-0.png").size[0] > 1000
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(out / "semantic_map.png")), semantic_map)
    parameters = json.loads((out / "parameters.json").read_text())
    assert parameters["nodule_features"] == {"malignancy": "malignant", "texture": 4.0}
    assert parameters["scheduler"] == "EulerDiscreteScheduler" and parameters["seeds"] == [5, 6]
    assert len(parameters["nodules"]) == 2
    assert parameters["device"] in ("cpu", "cuda:0") and parameters["versions"]["lsdm_diffusers"] == __version__


def test_same_seed_same_image_alone_or_with_others(arguments, tmp_path):
    main([*arguments, "--num_images", "2"])
    both = np.load(tmp_path / "out" / "image-1.npy").astype(int)
    main([*arguments, "--seed", "1"])
    np.testing.assert_allclose(np.load(tmp_path / "out" / "image-0.npy"), both, atol=2)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--texture", "7"], "texture = 7.0"),
        (["--malignancy", "awful"], "'awful'"),
        (["--scheduler", "UNet2DModel"], "'UNet2DModel'"),
        (["--num_images", "0"], "--num_images"),
        (["--num_inference_steps", "0"], "--num_inference_steps"),
        (["--semantic_map", "nowhere.png"], "nowhere.png"),
        (["--pretrained_model_name_or_path", "nowhere"], "is nowhere, but that is neither a folder here nor the id"),
        (["--pretrained_model_name_or_path", "/no/such/folder"], "is /no/such/folder, but that is neither"),
        (["--pretrained_model_name_or_path", "."], "has no model_index.json"),
        (["--scheduler", "FlowMatchEulerDiscreteScheduler"], "flow-matching"),
        (["--scheduler", "DPMSolverSDEScheduler"], "is missing: pip install torchsde$"),
        (["--device", "abacus"], "'abacus'"),
        (["--device", "gpu"], "`--device` is 'gpu', but a torch device such as cpu or cuda is needed"),
        (["--device", "meta"], "`--device` is 'meta', but torch cannot use that device here"),
        (["--device", "cuda:99"], "`--device` is 'cuda:99', but torch"),
        (["--pixel_spacing", "9"], "`pixel_spacing` is 9.0, but the edge of a pixel of chest CT is 0.1..5 mm"),
    ],
)
def test_bad_arguments_end_in_one_sentence(arguments, tmp_path, extra, message):
    with pytest.raises(SystemExit, match=message):
        main([*arguments, *extra])
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder_is_named(arguments, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(SystemExit, match="file is a file, and a folder is needed"):
            main([*arguments, "--output", str(output)])


def test_devices_and_outputs_are_checked_before_anything_is_loaded(arguments, tmp_path, monkeypatch):
    def load(*_):
        pytest.fail("the pipeline was loaded first")

    monkeypatch.setattr("lsdm_diffusers.LSDMGuidedPipeline.from_pretrained", load)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="`--device` is 'cuda', but torch finds no CUDA device here"):
        main([*arguments, "--device", "cuda"])
    for output, reason in (("/proc/slices", "No such file"), (str(tmp_path / "new" / ("x" * 300)), "name too long")):
        with pytest.raises(SystemExit, match=f"--output.*, but no file can be written there: .*{reason}"):
            main([*arguments, "--output", output])
    assert not (tmp_path / "new").exists()

    def full(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", full)  # the permissions may allow what the disk does not
    with pytest.raises(SystemExit, match="no file can be written there: Read-only file system"):
        main(arguments)
    assert not (tmp_path / "out").exists()


def test_a_format_without_its_library_is_refused(arguments, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="`--format` has dicom, but pydicom is not installed"):
        main([*arguments, "--format", "png", "dicom"])


def test_every_format_holds_the_slice_and_every_file_is_named(arguments, tmp_path, capsys):
    nibabel, pydicom = pytest.importorskip("nibabel"), pytest.importorskip("pydicom")
    formats = ["--format", "png", "npy", "nifti", "dicom"]
    main([*arguments, *formats, "--num_images", "2", "--pixel_spacing", "0.8"])
    out = tmp_path / "out"
    printed = capsys.readouterr().out.split()
    assert sorted(printed) == sorted(str(file) for file in out.iterdir()) and len(printed) == 2 * 5 + 2
    hu = np.load(out / "image-1.npy")
    volume, dicom = nibabel.load(out / "image-1.nii.gz"), pydicom.dcmread(out / "image-1.dcm")
    np.testing.assert_array_equal(np.asarray(volume.dataobj)[:, :, 0].T, hu)
    np.testing.assert_array_equal(dicom.pixel_array, hu)
    assert volume.header.get_zooms()[:2] == pytest.approx((0.8, 0.8)) and list(dicom.PixelSpacing) == [0.8, 0.8]
    assert json.loads((out / "parameters.json").read_text())["pixel_spacing"] == 0.8


def test_formats_that_are_not_asked_for_are_not_written(arguments, tmp_path):
    main([*arguments, "--format", "npy"])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"image-0.npy", "preview-0.png", "semantic_map.png", "parameters.json"}


def test_the_spacing_that_the_map_states_is_taken_and_warned_of(arguments, tmp_path, semantic_map, capsys):
    text = PngInfo()
    text.add_text("pixel_spacing_mm", "1.4")
    PIL.Image.fromarray(semantic_map).save(tmp_path / "map.png", pnginfo=text)
    main(arguments)
    errors = capsys.readouterr().err
    assert "warning: A pixel of the map is 1.4 mm, but the weights were trained on pixels of 0.5..1 mm" in errors
    assert json.loads((tmp_path / "out" / "parameters.json").read_text())["pixel_spacing"] == 1.4
    with pytest.raises(SystemExit, match="`--pixel_spacing` is 0.7, but the file of the map states 1.4"):
        main([*arguments, "--pixel_spacing", "0.7"])


def test_wrong_words_end_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["--guidance_order", "backwards"])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["--semantic_map", "nothing.png"],
        ["--pretrained_model_name_or_path", "nowhere"],
        ["--output", "/dev/null/folder"],
        ["--texture", "7"],
        ["--steps", "3"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_help_and_wrong_arguments_do_not_wait_for_torch(arguments):
    code = (
        "import sys\n"
        "from lsdm_diffusers.generate import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'diffusers', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
        "    print('ended:', end.code)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.returncode == 0 and "ended:" in run.stdout, run.stderr


@pytest.mark.slow
def test_shipped_checkpoint_and_map(tmp_path):
    """The default command at a small size: the shipped weights on a crop of the shipped map."""
    labels = read_semantic_map(example_map())
    assert labels.shape == (512, 512) and find_nodules(labels)
    y, x = (int(c) for c in find_nodules(labels)[0].centroid_yx)
    y, x = min(max(y - 64, 0), 384), min(max(x - 64, 0), 384)
    PIL.Image.fromarray(labels[y : y + 128, x : x + 128]).save(tmp_path / "crop.png")
    main(
        [
            "--semantic_map",
            str(tmp_path / "crop.png"),
            "--output",
            str(tmp_path),
            "--num_inference_steps",
            "8",
            "--malignancy",
            "malignant",
        ]
    )
    hu = np.load(tmp_path / "image-0.npy")
    lung = hu[labels[y : y + 128, x : x + 128] == 4]
    assert -1000 < np.median(lung) < -600


def test_the_method_of_guidance_is_chosen_and_kept(arguments, tmp_path):
    slices = {}
    for method in ("classifier", "contrast"):
        main([*arguments, "--malignancy", "benign", "--guidance_method", method])
        parameters = json.loads((tmp_path / "out" / "parameters.json").read_text())
        assert parameters["guidance_methods"] == {"malignancy": method}
        slices[method] = np.load(tmp_path / "out" / "image-0.npy")
    assert not np.array_equal(slices["classifier"], slices["contrast"])
    with pytest.raises(SystemExit, match="lsdm-generate: .*labels differ by malignancy alone"):
        main([*arguments, "--texture", "4", "--guidance_method", "contrast"])
