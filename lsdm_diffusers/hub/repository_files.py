"""The files that a repository on the Hub gets: those of a model, of a dataset, or of the Space with the page."""

import importlib.resources
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard, SpaceCard, SpaceCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

import lsdm_diffusers

from .publishing import TAGS, evaluation_results
from .remote_code import remote_code_files
from .upload_check import Content, Kind, check_card, check_files, read_content

Revisions = dict[str, dict[str, Content]]  # {revision: {path in the repository: path here, or content}}

IGNORED_FOLDERS = {"__pycache__", ".git", ".cache", ".gradio"}
REAL_SLICES = "real slices"  # the entry of results.json that belongs to no pipeline
FROM_THE_HUB = """
## From the Hub

With the package `lsdm_diffusers` installed; no code of this repository runs:

```python
from lsdm_diffusers import {name}

pipe = {name}.from_pretrained("{repo_id}")
```

Without it, by the code files of the revision `remote-code`. They run on your machine: read them first. They need
{requirements}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", revision="remote-code", trust_remote_code=True)
```
"""
REMOTE_CODE_REQUIREMENTS = "diffusers, accelerate, opencv-python-headless, scikit-image, scikit-learn and scipy"
SPACE_REQUIREMENT = "lsdm_diffusers[demo]"
SPACE_PYTHON = "3.11"  # the oldest that the package supports
SPACE_APP = '''"""The page of lsdm_diffusers as a Space."""

from lsdm_diffusers.demo.page import build_demo, launch, load_pipeline

demo = build_demo(load_pipeline("{model_id}"))

if __name__ == "__main__":
    launch(demo, server_name="0.0.0.0")
'''


def files_below(folder: Path) -> dict[str, Path]:
    """{relative path: path} of the files in a folder and in its sub-folders, without caches."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name.as_posix(): path for name, path in paths.items() if not IGNORED_FOLDERS & set(name.parts)}


def check_repository(files: Mapping[str, Content], kind: Kind) -> None:
    """Raise ValueError unless the files and their card may go out."""
    check_files(files, kind)
    check_card(read_content(files["README.md"]).decode(), kind)


def read_results(path: Path, name: str | None, pipeline_folder: str) -> tuple[str, list[EvalResult]]:
    """Read the figures of a pipeline from a file of training/evaluate.py.

    Args:
        path: results.json or model-index-*.yml.
        name: name of the pipeline in results.json; None for that of its folder, or for the only one.
        pipeline_folder: name of the pipeline's folder.

    Returns:
        The pipeline's name and the entries of the card's `model-index`.

    Raises:
        ValueError: if the file is no such file, or does not have the pipeline.
    """
    if not path.is_file():
        raise ValueError(f"`results` is {path}, but that is no file.")
    try:
        content = yaml.safe_load(path.read_text())  # JSON is YAML, too
        if "model-index" in content:
            return model_index_to_eval_results(content["model-index"])
        names = [key for key in content["results"] if key != REAL_SLICES]
        evaluated = {key: content["results"][key] for key in names}
        dataset, split, setting = content["dataset"], content["split"], content["setting"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(
            f"`results` is {path}, but a results.json or model-index-*.yml of training/evaluate.py is needed."
        ) from None
    if name is None and pipeline_folder in evaluated:
        name = pipeline_folder
    elif name is None and len(names) == 1:
        name = names[0]
    if name is None or name not in evaluated:
        raise ValueError(f"`results_name` is {name}, but {path} has {', '.join(names)}: name one of them.")
    return name, evaluation_results(evaluated[name], dataset, split, setting)


def _read_model_index(folder: Path) -> tuple[dict[str, Any], type[DiffusionPipeline]]:
    """The content of a pipeline's model_index.json and the class that it names."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ValueError(
            f"`pretrained_model_name_or_path` is {folder}, but a folder with a model_index.json is needed."
        )
    index = json.loads(path.read_text())
    class_name = str(index.get("_class_name"))
    pipeline_class = getattr(lsdm_diffusers, class_name, None)
    if not (isinstance(pipeline_class, type) and issubclass(pipeline_class, DiffusionPipeline)):
        raise ValueError(f"{folder} is a {class_name}, but a pipeline of lsdm_diffusers is needed.")
    return index, pipeline_class


def _check_components(files: Mapping[str, Content], index: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError unless each sub-folder is a component of the index, and each component has a sub-folder."""
    components = sorted(name for name, value in index.items() if isinstance(value, list) and value[0])
    present = {name.split("/")[0] for name in files if "/" in name}
    for name in files:
        if "/" in name and name.split("/")[0] not in components:
            raise ValueError(f"{name} belongs to no component of model_index.json ({', '.join(components)}).")
    for name in components:
        if name not in present:
            raise ValueError(f"{folder} has no folder {name}, but its model_index.json names one.")


def model_files(folder: Path, repo_id: str, results: Path | None = None, results_name: str | None = None) -> Revisions:
    """Collect and check the files of a pipeline.

    Args:
        folder: a saved pipeline with a README.md.
        repo_id: "user/name" on the Hub, for the card.
        results: results.json or model-index-*.yml of training/evaluate.py, for the card's `model-index`.
        results_name: the pipeline's name in results.json; None for that of its folder, or for the only one.

    Returns:
        The files of the revisions "main", without code, and "remote-code".

    Raises:
        ValueError: for a file, a card or a pipeline that may not go out.
        ImportError: if the pipeline has a component of a module that this version does not have.
    """
    index, pipeline_class = _read_model_index(folder)
    files: dict[str, Content] = {**files_below(folder)}
    if "README.md" not in files:
        raise ValueError(
            f"{folder} has no README.md; the training scripts write one, or fill lsdm_diffusers/hub/model_card.md."
        )
    check_repository(files, "model")
    _check_components(files, index, folder)
    card = ModelCard.load(folder / "README.md")
    if results is not None:
        card.data.model_name, card.data.eval_results = read_results(results, results_name, folder.resolve().name)
        measured = {result.metric_type for result in card.data.eval_results}
        card.data.metrics = sorted(measured | set(card.data.metrics or ()))
    card.text += FROM_THE_HUB.format(
        name=pipeline_class.__name__, repo_id=repo_id, requirements=REMOTE_CODE_REQUIREMENTS
    )
    files["README.md"] = str(card).encode()
    return {"main": files, "remote-code": {**files, **remote_code_files(index, pipeline_class)}}


def dataset_files(folder: Path) -> Revisions:
    """Collect and check the files of a dataset that training/prepare_*.py made.

    Raises:
        ValueError: if the folder is no such dataset, or for a file or a card that may not go out.
    """
    files: dict[str, Content] = {name: path for name, path in files_below(folder).items() if path.suffix != ".part"}
    if not any(name.endswith(".parquet") for name in files) or "README.md" not in files:
        raise ValueError(
            f"`dataset_dir` is {folder}, but a folder of training/prepare_*.py with data/ and README.md is needed."
        )
    check_repository(files, "dataset")
    return {"main": files}


def space_files(model_id: str, package_url: str | None = None) -> Revisions:
    """Make the files of a Space that serves the page.

    Args:
        model_id: "user/name" of the model on the Hub that the page uses.
        package_url: where the Space gets this package, such as "git+https://..."; None for PyPI.

    Raises:
        ValueError: if gradio, whose version the Space names, is not installed here.
    """
    try:
        sdk_version = version("gradio")
    except PackageNotFoundError:
        raise ValueError(
            'The Space uses the gradio that is installed here, but none is: `pip install "lsdm_diffusers[demo]"`.'
        ) from None
    requirement = f"{SPACE_REQUIREMENT} @ {package_url}" if package_url else SPACE_REQUIREMENT
    data = SpaceCardData(
        title="Lung CT from semantic maps",
        emoji="🫁",
        colorFrom="blue",
        colorTo="gray",
        sdk="gradio",
        sdk_version=sdk_version,
        python_version=SPACE_PYTHON,
        app_file="app.py",
        models=[model_id],
        license="apache-2.0",
        tags=TAGS,
        short_description="Draw a semantic map, get a synthetic lung CT slice",
    )
    template = importlib.resources.files(__package__).joinpath("space_card.md").read_text(encoding="utf-8")
    card = SpaceCard.from_template(data, template_str=template, model_id=model_id)
    files: dict[str, Content] = {
        "app.py": SPACE_APP.format(model_id=model_id).encode(),
        "requirements.txt": f"{requirement}\n".encode(),
        "README.md": (str(card).rstrip() + "\n").encode(),
    }
    check_repository(files, "space")
    return {"main": files}
