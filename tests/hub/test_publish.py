"""hub_cards/publish.py: what it pushes, what it refuses, and the pushed model loaded with and without this package."""

import ast
import json
import os
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard, SpaceCard

import lsdm_diffusers
from lsdm_diffusers import LSDMGuidedPipeline
from lsdm_diffusers.data.dataset_card import write_dataset_card
from lsdm_diffusers.hub import remote_code, repository_files
from lsdm_diffusers.hub.publishing import write_model_card
from lsdm_diffusers.hub.upload_check import check_card, check_files

from ..conftest import ROOT, sample, tiny_pipeline
from ..hub_stand_in import stand_in_hub

CARD = """---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: image-to-image
tags: [lsdm]
---

# Tiny

Of nobody. Not for clinical use.
"""

WITH_PACKAGE = """
import sys, numpy, torch
from lsdm_diffusers import LSDMGuidedPipeline
pipe = LSDMGuidedPipeline.from_pretrained("user/lsdm")
generator = torch.Generator().manual_seed(1)
arguments = {"num_inference_steps": 3, "output_type": "hu", "generator": generator}
features = {"malignancy": "malignant", "spiculation": 4}
numpy.save(sys.argv[2], pipe(numpy.load(sys.argv[1]), features, **arguments).images)
"""
WITHOUT_PACKAGE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lsdm_diffusers":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
import numpy, torch
from diffusers import DiffusionPipeline
try:
    DiffusionPipeline.from_pretrained("user/lsdm", revision="remote-code")
    sys.exit("loaded code that nobody had trusted")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
pipe = DiffusionPipeline.from_pretrained("user/lsdm", revision="remote-code", trust_remote_code=True)
# diffusers runs the code a second time here; the first pipeline must still work afterwards
DiffusionPipeline.from_pretrained("user/lsdm", revision="remote-code", trust_remote_code=True)
generator = torch.Generator().manual_seed(1)
arguments = {"num_inference_steps": 3, "output_type": "hu", "generator": generator}
features = {"malignancy": "malignant", "spiculation": 4}
numpy.save(sys.argv[2], pipe(numpy.load(sys.argv[1]), features, **arguments).images)
assert "lsdm_diffusers" not in sys.modules
"""


@pytest.fixture
def publish(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "hub_cards" / "publish.py"), run_name="__main__")

    return run


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the Hub was called")

    monkeypatch.setattr("lsdm_diffusers.hub.publish.HfApi", refuse)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with stand_in_hub(tmp_path / "home") as (environment, hub):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", environment["HF_ENDPOINT"])
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield environment, hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model_command(folder, *more):
    return "model", "--repo_id", "user/lsdm", "--pretrained_model_name_or_path", folder, *more


@pytest.mark.slow
def test_the_pushed_model_gives_the_same_image_with_and_without_the_package(
    model, publish, hub, tmp_path, semantic_map
):
    environment, hub = hub
    publish(*model_command(model, "--dry_run", "--output_dir", tmp_path / "dry"))
    assert not hub.repositories
    publish(*model_command(model, "--private", "--hub_token", "hf_test"))
    assert hub.created["user/lsdm"]["visibility"] == "private"
    publish(*model_command(model, "--hub_token", "hf_test"))  # a second time, into the repository that exists now
    for revision, files in hub.repositories["user/lsdm"].items():
        assert {name: content for name, content in files.items() if name != ".gitattributes"} == contents(
            tmp_path / "dry" / revision
        )

    np.save(tmp_path / "map.npy", semantic_map)
    elsewhere = {"cwd": tmp_path, "env": {**os.environ, **environment}, "capture_output": True, "text": True}
    local = WITH_PACKAGE.replace("user/lsdm", str(model))
    # each in a new process: after other tests, floats may add up in another order
    for name, script, isolated in (
        ("with", WITH_PACKAGE, ()),
        ("without", WITHOUT_PACKAGE, ("-I",)),
        ("local", local, ()),
    ):
        run = subprocess.run([sys.executable, *isolated, "-c", script, "map.npy", f"{name}.npy"], **elsewhere)
        assert run.returncode == 0 and "Expected types" not in run.stderr, run.stderr[-3000:]
    image = np.load(tmp_path / "local.npy")
    assert (np.load(tmp_path / "with.npy") == image).all() and (np.load(tmp_path / "without.npy") == image).all()
    assert not (image == sample(tiny_pipeline(), semantic_map)).all()  # it was guided


def test_main_holds_safetensors_and_no_code_and_loads_as_a_folder(model, publish, no_hub, tmp_path, semantic_map):
    publish(*model_command(model, "--dry_run", "--output_dir", tmp_path / "dry"))
    main = tmp_path / "dry" / "main"
    assert {Path(name).suffix for name in contents(main)} == {".json", ".safetensors", ".md"}
    # both from files: weights in memory may be summed in another order
    published, saved = (LSDMGuidedPipeline.from_pretrained(folder) for folder in (main, model))
    for pipe in (published, saved):
        pipe.set_progress_bar_config(disable=True)
    assert (sample(published, semantic_map) == sample(saved, semantic_map)).all()
    card = ModelCard.load(main / "README.md")
    assert (
        card.data.to_dict().items()
        >= {"license": "cc-by-4.0", "library_name": "diffusers", "pipeline_tag": "image-to-image"}.items()
    )
    assert 'LSDMGuidedPipeline.from_pretrained("user/lsdm")' in card.text and 'revision="remote-code"' in card.text


def test_files_of_an_earlier_push_are_deleted(model, publish, hub):
    _, hub = hub
    publish(*model_command(model, "--hub_token", "hf_test"))
    hub.repositories["user/lsdm"]["main"]["unet/old.bin"] = b"old"
    publish(*model_command(model, "--hub_token", "hf_test"))
    assert "unet/old.bin" not in hub.repositories["user/lsdm"]["main"]


def test_a_repository_that_cannot_be_made_is_one_sentence(model, publish, hub):
    _, hub = hub
    hub.post = lambda path, body: (
        403,
        {"error": "You don't have the rights to create a model under the namespace user"},
    )
    with pytest.raises(SystemExit, match="user/lsdm was not published, or not wholly: .*You don't have the rights"):
        publish(*model_command(model, "--hub_token", "hf_test"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unet/diffusion_pytorch_model.bin", b"x", "unet/diffusion_pytorch_model.bin is a pickle"),
        ("unet/weights.ckpt", b"x", "is a pickle"),
        (
            "unet/diffusion_pytorch_model.fp16.safetensors",
            b"\x80\x04\x95pickle in disguise",
            "is no safetensors file, whatever its name",
        ),
        ("data/train-00000-of-00001.parquet", b"PAR1", "holds data, which have no place in a model"),
        ("slices/0001.dcm", b"x", "holds data"),
        ("latents.npy", b"x", "holds data"),
        ("slices/0001", b"\0" * 128 + b"DICM", "slices/0001 is no file of a model"),
        ("validation.png", b"\0" * 128 + b"DICM", "is no PNG file by its first bytes"),
        ("latents/0.json", b"{}", "belongs to no component"),
        ("unet/evil.py", b"print()", "unet/evil.py is no file of a model"),
        (
            "unet/notes.json",
            b'{"_name_or_path": "/home/somebody/vae"}',
            "contains the absolute path '/home/somebody/vae'",
        ),
        ("unet/notes.json", b'{"_name_or_path": "/vae"}', "contains the absolute path '/vae'"),
        ("unet/notes.json", rb'{"path": "C:\\Users\\somebody"}', "contains the absolute path"),
        (
            "unet/notes.json",
            b'{"hub_token": "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"}',
            "an access token or a private key",
        ),
        ("unet/notes.json", b"{", "is no JSON"),
        (
            "model_index.json",
            b'{"_class_name": "semantic_map"}',
            "is a semantic_map, but a pipeline of lsdm_diffusers is needed",
        ),
        (
            "README.md",
            CARD.encode() + b"Trained on /mnt/scans/lidc.",
            "README.md contains the absolute path '/mnt/scans/lidc",
        ),
        (
            "README.md",
            CARD.encode() + b"TO FILL IN: whom the patients stand for.",
            "the unfilled field 'TO FILL IN: whom the patients stand for'",
        ),
        ("README.md", CARD.encode() + b"Of {{ patients }} patients", "the unfilled field '{{ patients }}'"),
        ("README.md", CARD.encode() + b"[More Information Needed]", "unfilled field"),
        ("README.md", CARD.replace("license: cc-by-4.0\n", "").encode(), "README.md has no `license`"),
        ("README.md", CARD.replace("cc-by-4.0", "other").encode(), "`license: other` without a `license_name`"),
        ("README.md", CARD.replace("diffusers", "keras").encode(), "`library_name: keras`"),
        ("README.md", CARD.replace("[lsdm]", "[lsdm").encode(), "metadata that cannot be read"),
        ("README.md", b"# No metadata", "README.md has no `license`"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_model_with_what_should_not_go_out_is_refused(
    model, publish, no_hub, tmp_path, name, content, message, dry_run
):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(content)
    with pytest.raises(SystemExit, match=".") as refusal:
        publish(*model_command(model, *(("--dry_run", "--output_dir", tmp_path / "dry") if dry_run else ())))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dry_run",), "--dry_run and --output_dir belong together"),
        (("--output_dir", "x"), "--dry_run and --output_dir belong together"),
        (("--dry_run", "--output_dir", ROOT), "but a new or empty folder is needed"),
        (("--repo_id", "nobody"), "--repo_id is 'nobody', but \"user/name\" is needed"),
        (("--repo_id", "../x"), "--repo_id is '../x'"),
    ],
)
def test_wrong_arguments_are_named(model, publish, no_hub, capsys, arguments, message):
    with pytest.raises(SystemExit):
        publish(*model_command(model, *arguments))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("present", "missing"),
    [("model_index.json", "unet"), ("unet/config.json", "model_index.json"), ("model_index.json", "README.md")],
)
def test_an_incomplete_pipeline_is_refused(model, publish, no_hub, present, missing):
    shutil.rmtree(model / missing) if (model / missing).is_dir() else (model / missing).unlink()
    assert (model / present).exists()
    with pytest.raises(SystemExit, match=missing):
        publish(*model_command(model))


def test_a_component_of_an_unknown_module_is_refused(model, publish, no_hub):
    index = (model / "model_index.json").read_text()
    (model / "model_index.json").write_text(
        index.replace("lsdm_diffusers.models.unet_spade", "lsdm_diffusers.models.unet_of_tomorrow")
    )
    with pytest.raises(
        SystemExit, match="Refused, nothing was pushed: No module named 'lsdm_diffusers.models.unet_of_tomorrow'"
    ):
        publish(*model_command(model))


def test_the_shipped_checkpoint_goes_out_with_its_figures(publish, no_hub, tmp_path):
    figures = {"fid": {"mean": 1.23456, "deviation": 0.1}, "dice_lung": {"mean": 0.9, "deviation": 0.0}}
    report = {"setting": "2 slices; features of efficientnet", "dataset": "lidc", "split": "test"}
    report["results"] = {"real slices": figures, "lung-ct-small": figures, "gan": figures}
    (tmp_path / "results.json").write_text(json.dumps(report))
    publish(
        "model",
        "--repo_id",
        "user/small",
        "--dry_run",
        "--output_dir",
        tmp_path / "dry",
        "--results",
        tmp_path / "results.json",
    )
    shipped, pushed = (
        ModelCard.load(Path(lsdm_diffusers.small_checkpoint()) / "README.md"),
        ModelCard.load(tmp_path / "dry" / "main" / "README.md"),
    )
    assert shipped.text.strip() in pushed.text  # as it is
    assert pushed.data.model_name == "lung-ct-small" and {"fid", "dice_lung"} <= set(pushed.data.metrics)
    assert [(r.metric_type, r.metric_value, r.dataset_name, r.dataset_split) for r in pushed.data.eval_results] == [
        ("fid", 1.2346, "lidc", "test"),
        ("dice_lung", 0.9, "lidc", "test"),
    ]
    (tmp_path / "model-index.yml").write_text(yaml.safe_dump({"model-index": pushed.data.to_dict()["model-index"]}))
    publish(
        "model",
        "--repo_id",
        "user/small",
        "--dry_run",
        "--output_dir",
        tmp_path / "yml",
        "--results",
        tmp_path / "model-index.yml",
    )
    assert contents(tmp_path / "yml") == contents(tmp_path / "dry")
    for wrong, message in (
        (("--results_name", "vae"), "has lung-ct-small, gan"),
        (("--results", tmp_path / "dry/main/README.md"), "is needed"),
    ):
        with pytest.raises(SystemExit, match=message):
            publish("model", "--repo_id", "user/small", "--results", tmp_path / "results.json", *wrong)


def test_a_dataset_is_pushed_with_its_card(dataset, publish, hub, tmp_path):
    folder = Path(shutil.copytree(dataset, tmp_path / "lidc"))
    record = {"patient_id": "p", "split": "train", "rows": 12, "rows_with_nodules": 12, "nodules": 12, "ratings": {}}
    text = {
        "pretty_name": "Tiny",
        "summary": "Tiny.",
        "selection": "All.",
        "licence": "Nobody's.",
        "licence_id": "cc0-1.0",
        "tags": [],
        "command": "x",
    }
    write_dataset_card(folder, [record], 16, **text)
    (folder / "begun.part").write_bytes(b"")
    publish("dataset", "--repo_id", "user/lidc", "--dataset_dir", folder, "--hub_token", "hf_test")
    pushed = hub[1].repositories["datasets/user/lidc"]["main"]
    assert set(pushed) == {
        ".gitattributes",
        "README.md",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    }
    assert DatasetCard(pushed["README.md"].decode()).data.license == "cc0-1.0"

    (folder / "scan.dcm").write_bytes(b"x")
    with pytest.raises(SystemExit, match="scan.dcm holds data, which have no place in a dataset: only .parquet"):
        publish("dataset", "--repo_id", "user/lidc", "--dataset_dir", folder)
    (folder / "scan.dcm").unlink()
    write_dataset_card(folder, [record], 16, **{**text, "licence_id": "other"})
    with pytest.raises(SystemExit, match="`license: other` without a `license_name`"):
        publish("dataset", "--repo_id", "user/lidc", "--dataset_dir", folder)


@pytest.mark.skipif(not find_spec("gradio"), reason="gradio, whose version the card names, is not installed")
def test_the_space_serves_the_page_with_its_model(publish, hub, tmp_path, monkeypatch):
    command = (
        "space",
        "--repo_id",
        "user/page",
        "--model_id",
        "user/lsdm",
        "--package_url",
        "git+https://example.org/lsdm_diffusers",
    )
    publish(*command, "--dry_run", "--output_dir", tmp_path / "dry")
    publish(*command, "--hub_token", "hf_test")
    pushed = hub[1].repositories["spaces/user/page"]["main"]
    assert {name: content for name, content in pushed.items() if name != ".gitattributes"} == contents(
        tmp_path / "dry"
    )
    assert hub[1].created["spaces/user/page"]["sdk"] == "gradio"
    data = SpaceCard.load(tmp_path / "dry" / "README.md").data.to_dict()
    assert data["sdk"] == "gradio" and data["sdk_version"] == version("gradio") and data["models"] == ["user/lsdm"]
    assert (
        "lsdm_diffusers[demo] @ git+https://example.org/lsdm_diffusers\n"
        in (tmp_path / "dry" / "requirements.txt").read_text()
    )
    calls = []
    for name in ("load_pipeline", "build_demo", "launch"):
        monkeypatch.setattr(
            f"lsdm_diffusers.demo.page.{name}", lambda *args, name=name, **kw: calls.append((name, args, kw))
        )
    runpy.run_path(str(tmp_path / "dry" / data["app_file"]), run_name="__main__")
    assert calls == [
        ("load_pipeline", ("user/lsdm",), {}),
        ("build_demo", (None,), {}),
        ("launch", (None,), {"server_name": "0.0.0.0"}),
    ]


def test_the_app_of_a_space_is_that_of_the_repository():
    requirements = (ROOT / "demo" / "requirements.txt").read_text().splitlines()
    assert requirements == [repository_files.SPACE_REQUIREMENT]
    space = repository_files.SPACE_APP.format(model_id="user/lsdm")
    local = space.replace('load_pipeline("user/lsdm")', "load_pipeline()").replace(', server_name="0.0.0.0"', "")
    assert code_of(local) == code_of((ROOT / "demo" / "app.py").read_text())


def code_of(source):
    """The statements of a module after its docstring."""
    return [ast.unparse(node) for node in ast.parse(source).body[1:]]


def test_the_card_of_a_run_takes_patients_and_licence_from_its_dataset(tmp_path):
    folder = tmp_path / "lidc"
    folder.mkdir()
    text = {
        "pretty_name": "Tiny",
        "summary": "Tiny.",
        "selection": "All.",
        "licence": "LIDC-IDRI, CC BY 3.0: Armato III et al.",
        "tags": [],
    }
    write_dataset_card(folder, [], 16, licence_id="cc-by-3.0", command="x", **text)
    (folder / "splits.json").write_text(json.dumps({"train": ["a", "b"], "validation": ["c"]}))
    for dataset, filled in ((str(folder), True), ("user/elsewhere", False)):
        write_model_card(
            tmp_path,
            script="train_unet.py",
            title="Lung CT",
            summary="A model.",
            dataset=dataset,
            arguments={"dataset_name": dataset, "train_data_dir": None, "hub_token": "hf_secret", "seed": 1},
            step=1,
            figures={"loss": 0.5},
        )
        card = ModelCard.load(tmp_path / "README.md")
        card.data.license = "cc-by-4.0"
        if filled:
            assert (
                "LIDC-IDRI, CC BY 3.0: Armato III et al." in card.text
                and "Patients: 2 train, 1 validation." in card.text
            )
            check_card(str(card), "model")
            check_files({"README.md": str(card).encode()}, "model")
        else:
            assert card.data.datasets == ["user/elsewhere"]
            with pytest.raises(ValueError, match="TO FILL IN: whose scans"):
                check_card(str(card), "model")


@pytest.mark.parametrize(
    "text",
    [
        "a/b/c",
        "https://x.org/a/b",
        "../shared/data",
        "</td></tr>",
        "s = 16 / 4 / 1",
        "mm/px",
        "doi:10.7937/K9/TCIA.2015",
    ],
)
def test_what_looks_like_a_path_and_is_none_goes_out(text):
    check_files({"README.md": text.encode()}, "model")


@pytest.mark.parametrize(
    "name",
    ["pipeline_lsdm", "pipeline_spade_gan", "models.unet_spade", "models.spade_gan", "models.nodule_classifier"],
)
def test_the_code_of_a_class_is_one_file_without_this_package(name):
    source = remote_code.self_contained_source(f"lsdm_diffusers.{name}")
    compile(source, name, "exec")
    imported = third_party_modules(source)
    assert "lsdm_diffusers" not in imported
    needed = {
        "PIL",
        "accelerate",
        "cv2",
        "diffusers",
        "huggingface_hub",
        "numpy",
        "scipy",
        "skimage",
        "sklearn",
        "torch",
    }
    assert imported <= needed, "name the packages in REMOTE_CODE_REQUIREMENTS"


@pytest.mark.parametrize("name", ["models.unet_spade", "models.nodule_classifier", "models.spade_gan"])
def test_the_code_of_a_component_carries_no_lung_segmentation(name):
    source = remote_code.self_contained_source(f"lsdm_diffusers.{name}")
    assert "cv2" not in source and "segmentation" not in source


def third_party_modules(source):
    """The top-level packages that a source imports, without those of Python; "" stands for a relative import."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add("" if node.level else node.module.split(".")[0])
    return modules - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("EDGE = 1\nfrom .second import half\n", "different things by `EDGE`"),
        ("from .second import EDGE as edge\n", "cannot be cut out"),
        ("def f():\n    from .second import EDGE\n", "cannot be cut out"),
        (
            "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from .second import half\n",
            "line 4 that cannot be cut out.* under `if TYPE_CHECKING:`",
        ),
        ("from .second import *\n", "cannot be cut out"),
        ("from . import second\n", "cannot be cut out"),
        ("from __future__ import annotations\n", "__future__ in line 1"),
        ("import clashing.second\n", "by its name"),
    ],
)
def test_code_that_one_file_cannot_hold_is_refused(tmp_path, monkeypatch, first, message):
    (tmp_path / "clashing").mkdir()
    for name, text in {
        "__init__": "__version__ = '1'",
        "first": first,
        "second": "EDGE = 2\n\n\ndef half():\n    return EDGE / 2\n",
    }.items():
        (tmp_path / "clashing" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(remote_code, "PACKAGE", "clashing")
    try:
        with pytest.raises(ValueError, match=message):
            remote_code.self_contained_source("clashing.first")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "clashing"]:
            del sys.modules[name]
