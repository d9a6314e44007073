"""The console command `lsdm-generate`."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

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
        (["--device", "abacus"], "'abacus'"),
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
