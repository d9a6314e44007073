"""Publish a pipeline, a prepared dataset or the page on the Hugging Face Hub; with --dry_run into a folder.

    python hub_cards/publish.py model --repo_id user/lung-ct-small --dry_run --output_dir to-be-pushed
    python hub_cards/publish.py model --repo_id user/lung-ct --pretrained_model_name_or_path lsdm/unet/pipeline --results evaluated/results.json
    python hub_cards/publish.py dataset --repo_id user/lidc-slices --dataset_dir lidc-dataset --private
    python hub_cards/publish.py space --repo_id user/lsdm --model_id user/lung-ct-small

A model has two revisions: `main`, weights alone, for those who have this package; `remote-code`, the same weights with code, for
those who have not. A revision afterwards holds what is pushed and nothing else: what else it held is deleted (its history stays).
Nothing goes out before every file and the card have passed the checks of lsdm_diffusers/hub/upload_check.py.
"""

import argparse
import importlib.resources
import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from diffusers import DiffusionPipeline
from httpx import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, SpaceCard, SpaceCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

import lsdm_diffusers

from .publishing import evaluation_results
from .remote_code import remote_code_files
from .upload_check import check_card, check_files, read_content

ROOT = Path(__file__).parents[2]
NEVER = {"__pycache__", ".git", ".cache", ".gradio"}
FROM_THE_HUB = """
## From the Hub

With the package `lsdm_diffusers` installed; no code of this repository runs:

```python
from lsdm_diffusers import {name}

pipe = {name}.from_pretrained("{repo_id}")
```

Without it, by the code files of the revision `remote-code`, which run on your machine: read them first. They need diffusers,
accelerate, opencv-python-headless and scikit-image.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", revision="remote-code", trust_remote_code=True)
```
"""
SPACE_APP = '''"""The page of lsdm_diffusers as a Space: `lsdm-demo` with the model of this Space."""

from lsdm_diffusers.demo.page import main

main(["--pretrained_model_name_or_path", "{model_id}", "--server_name", "0.0.0.0"])
'''


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--repo_id", required=True, help='"user/name" on the Hub')
    common.add_argument(
        "--dry_run", action="store_true", help="push nothing; write what would be pushed into --output_dir"
    )
    common.add_argument(
        "--output_dir",
        type=Path,
        help="for --dry_run: a new or empty folder; a model's has the sub-folders main and remote-code",
    )
    common.add_argument("--private", action="store_true", help="make a private repository, if it is a new one")
    common.add_argument("--hub_token", help="default: the one of `hf auth login`")
    kinds = parser.add_subparsers(dest="kind", required=True)
    model = kinds.add_parser("model", parents=[common], help="a pipeline")
    default = lsdm_diffusers.small_checkpoint()
    model.add_argument(
        "--pretrained_model_name_or_path",
        type=Path,
        default=default,
        help="folder of the pipeline; default: the shipped checkpoint",
    )
    model.add_argument(
        "--results",
        type=Path,
        help="results.json or model-index-*.yml of training/evaluate.py, for the card's model-index",
    )
    model.add_argument(
        "--results_name", help="the pipeline's name in results.json; default: that of its folder, or the only one"
    )
    dataset = kinds.add_parser("dataset", parents=[common], help="a dataset of training/prepare_*.py")
    dataset.add_argument("--dataset_dir", type=Path, required=True)
    space = kinds.add_parser("space", parents=[common], help="the page of demo/")
    space.add_argument("--model_id", required=True, help='"user/name" of the model on the Hub that the page uses')
    space.add_argument(
        "--package_url", help="where the Space gets this package, such as git+https://...; default: PyPI"
    )
    args = parser.parse_args()
    for name in ("repo_id", "model_id"):
        value = getattr(args, name, None)
        try:
            if value is not None:
                validate_repo_id(value)
                if value.count("/") != 1:
                    raise HFValidationError
        except HFValidationError:
            parser.error(f'--{name} is {value!r}, but "user/name" is needed.')
    if args.dry_run != bool(args.output_dir):
        parser.error("--dry_run and --output_dir belong together: give both, or neither to push.")
    if args.dry_run and args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        parser.error(f"--output_dir is {args.output_dir}, but a new or empty folder is needed.")
    return args


def files_below(folder: Path) -> dict[str, Path]:
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name.as_posix(): path for name, path in paths.items() if not NEVER & set(name.parts)}


def checked(files: dict, kind: str) -> dict:
    """The files, if they and their card may go out."""
    check_files(files, kind)
    check_card(read_content(files["README.md"]).decode(), kind)
    return files


def read_results(path: Path, name: str | None, pipeline_folder: str) -> tuple[str, list]:
    """(name, evaluation results) of a file of training/evaluate.py."""
    if not path.is_file():
        raise SystemExit(f"--results is {path}, but that is no file.")
    try:
        content = yaml.safe_load(path.read_text())
        if "model-index" in content:
            return model_index_to_eval_results(content["model-index"])
        names = [key for key in content["results"] if key != "real slices"]
        name = name or (pipeline_folder if pipeline_folder in names else names[0] if len(names) == 1 else None)
        if name not in names:
            raise SystemExit(f"--results_name is {name}, but {path} has {', '.join(names)}: name one of them.")
        return name, evaluation_results(
            content["results"][name], content["dataset"], content["split"], content["setting"]
        )
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        raise SystemExit(
            f"--results is {path}, but a results.json or model-index-*.yml of training/evaluate.py is needed."
        ) from None


def model_files(args) -> dict[str, dict]:
    """{revision: {path in the repository: path here, or content}}"""
    folder = args.pretrained_model_name_or_path
    if not (folder / "model_index.json").is_file():
        raise SystemExit(
            f"--pretrained_model_name_or_path is {folder}, but a folder with a model_index.json is needed."
        )
    index = json.loads((folder / "model_index.json").read_text())
    pipeline_class = getattr(lsdm_diffusers, str(index.get("_class_name")), None)
    if not (isinstance(pipeline_class, type) and issubclass(pipeline_class, DiffusionPipeline)):
        raise SystemExit(f"{folder} is a {index.get('_class_name')}, but a pipeline of lsdm_diffusers is needed.")
    files = files_below(folder)
    if "README.md" not in files:
        raise SystemExit(
            f"{folder} has no README.md; the training scripts write one, or fill hub_cards/model_card.md."
        )
    checked(files, "model")
    components = {name for name, value in index.items() if isinstance(value, list) and value[0]}
    for name in files:
        if "/" in name and name.split("/")[0] not in components:
            raise SystemExit(
                f"{name} belongs to no component that model_index.json names ({', '.join(sorted(components))}); it does not go out."
            )
    for name in sorted(components):
        if not any(file.startswith(f"{name}/") for file in files):
            raise SystemExit(f"{folder} has no folder {name}, which its model_index.json names.")
    card = ModelCard.load(folder / "README.md")
    if args.results:
        card.data.model_name, card.data.eval_results = read_results(
            args.results, args.results_name, folder.resolve().name
        )
        card.data.metrics = sorted(
            {result.metric_type for result in card.data.eval_results} | set(card.data.metrics or ())
        )
    card.text += FROM_THE_HUB.format(name=pipeline_class.__name__, repo_id=args.repo_id)
    files["README.md"] = str(card).encode()
    return {"main": files, "remote-code": files | remote_code_files(index, pipeline_class)}


def dataset_files(args) -> dict[str, dict]:
    files = files_below(args.dataset_dir)
    if not any(name.endswith(".parquet") for name in files) or "README.md" not in files:
        raise SystemExit(
            f"--dataset_dir is {args.dataset_dir}, but a folder made by training/prepare_*.py, with data/ and README.md, is needed."
        )
    return {"main": checked({name: path for name, path in files.items() if not name.endswith(".part")}, "dataset")}


def space_files(args) -> dict[str, dict]:
    try:
        sdk_version = version("gradio")
    except PackageNotFoundError:
        raise SystemExit(
            'The Space names the gradio that is installed here, but none is: `pip install ".[demo]"`.'
        ) from None
    requirements = ROOT / "demo" / "requirements.txt"
    if not requirements.is_file():
        raise SystemExit(f"{requirements} is not there, but the Space needs it.")
    package = "lsdm_diffusers[demo]"
    lines = requirements.read_text().splitlines()
    if package not in lines:
        raise SystemExit(f"{requirements} has no line {package}, but the Space installs this package by its name.")
    if args.package_url:
        lines[lines.index(package)] = f"{package} @ {args.package_url}"
    data = SpaceCardData(
        title="Lung CT from semantic maps",
        emoji="🫁",
        colorFrom="blue",
        colorTo="gray",
        sdk="gradio",
        sdk_version=sdk_version,
        python_version="3.11",
        app_file="app.py",
        models=[args.model_id],
        license="apache-2.0",
        tags=["lsdm", "lung-ct", "medical", "semantic-image-synthesis"],
        short_description="Draw a semantic map, get a synthetic lung CT slice",
    )
    card = SpaceCard.from_template(
        data,
        template_str=importlib.resources.files(__package__).joinpath("space_card.md").read_text(encoding="utf-8"),
        model_id=args.model_id,
    )
    files = {
        "app.py": SPACE_APP.format(model_id=args.model_id).encode(),
        "requirements.txt": ("\n".join(lines) + "\n").encode(),
    }
    return {"main": checked({**files, "README.md": (str(card).rstrip() + "\n").encode()}, "space")}


def write(revisions: dict[str, dict], output_dir: Path) -> None:
    for revision, files in revisions.items():
        for name, content in files.items():
            target = output_dir / (revision if len(revisions) > 1 else ".") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)


def push(revisions: dict[str, dict], args) -> str:
    """Make the repository where it is not there, and each revision hold exactly its files."""
    api = HfApi(token=args.hub_token)
    sdk = {"space_sdk": "gradio"} if args.kind == "space" else {}
    url = api.create_repo(args.repo_id, repo_type=args.kind, private=args.private or None, exist_ok=True, **sdk)
    for revision, files in revisions.items():
        if revision != "main":
            api.create_branch(args.repo_id, repo_type=args.kind, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(args.repo_id, repo_type=args.kind, revision=revision)) - {".gitattributes"}
        operations = [CommitOperationDelete(name) for name in sorted(there - files.keys())]
        operations += [CommitOperationAdd(name, content) for name, content in files.items()]
        message = f"Publish with lsdm_diffusers {lsdm_diffusers.__version__}"
        api.create_commit(args.repo_id, operations, commit_message=message, repo_type=args.kind, revision=revision)
    return str(url)


def main():
    args = parse_args()
    try:
        revisions = {"model": model_files, "dataset": dataset_files, "space": space_files}[args.kind](args)
    except (ValueError, ImportError) as error:  # ImportError: a component of a module that this version has not
        raise SystemExit(f"Refused, nothing was pushed: {error}") from None
    if args.dry_run:
        write(revisions, args.output_dir)
        where = "; ".join(f"{len(files)} files of revision {revision}" for revision, files in revisions.items())
        print(f"{args.output_dir} holds what would be pushed to {args.repo_id}: {where}.")
    else:
        try:
            print(f"published: {push(revisions, args)}")
        except (HfHubHTTPError, HTTPError, ValueError) as error:
            raise SystemExit(
                f"{args.repo_id} was not published, or not wholly: {' '.join(str(error).split())}"
            ) from None


if __name__ == "__main__":
    main()
