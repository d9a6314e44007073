"""Publish a pipeline, a prepared dataset or the page on the Hugging Face Hub; --dry_run writes it into a folder.

    python -m lsdm_diffusers.hub.publish model --repo_id user/lung-ct-small --dry_run --output_dir to-be-pushed
    python -m lsdm_diffusers.hub.publish model --repo_id user/lung-ct \\
        --pretrained_model_name_or_path lsdm/unet/pipeline --results evaluated/results.json
    python -m lsdm_diffusers.hub.publish dataset --repo_id user/lidc-slices --dataset_dir lidc-dataset --private
    python -m lsdm_diffusers.hub.publish space --repo_id user/lsdm --model_id user/lung-ct-small

`hub_cards/publish.py` of the repository is the same command. A model has two revisions: `main` holds the weights
alone, for users of this package; `remote-code` holds the same weights with code, for all others. Afterwards a revision
holds what was pushed and nothing else; older files stay in its history. Every file and the card are checked before
anything is pushed (lsdm_diffusers/hub/upload_check.py).
"""

import argparse
import shutil
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..checkpoint import small_checkpoint
from ..version import __version__
from .repository_files import Revisions, dataset_files, model_files, space_files
from .upload_check import Kind


def check_repo_id(name: str, value: str) -> None:
    """Raise ValueError unless the argument `name` is "user/name"."""
    try:
        validate_repo_id(value)
        valid = value.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(f'{name} is {value!r}, but "user/name" is needed.')


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; None for that of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--repo_id", required=True, help='Repository on the Hub, "user/name".')
    common.add_argument(
        "--dry_run", action="store_true", help="Push nothing; write what would be pushed into --output_dir."
    )
    common.add_argument(
        "--output_dir",
        type=Path,
        help="New or empty folder for --dry_run; that of a model gets the sub-folders main and remote-code.",
    )
    common.add_argument("--private", action="store_true", help="Make a private repository if it does not exist yet.")
    common.add_argument("--hub_token", help="Access token. Default: the token of `hf auth login`.")
    kinds = parser.add_subparsers(dest="kind", required=True)

    model = kinds.add_parser("model", parents=[common], help="Publish a pipeline.")
    model.add_argument(
        "--pretrained_model_name_or_path",
        type=Path,
        default=None,
        help="Folder of the pipeline. Default: the checkpoint that ships with the package.",
    )
    model.add_argument(
        "--results",
        type=Path,
        help="results.json or model-index-*.yml of training/evaluate.py, whose figures go into the card's metadata.",
    )
    model.add_argument(
        "--results_name", help="Name of the pipeline in results.json. Default: that of its folder, or the only one."
    )

    dataset = kinds.add_parser("dataset", parents=[common], help="Publish a dataset of training/prepare_*.py.")
    dataset.add_argument("--dataset_dir", type=Path, required=True, help="Folder of the dataset.")

    space = kinds.add_parser("space", parents=[common], help="Publish the page as a Space.")
    space.add_argument("--model_id", required=True, help='Model on the Hub that the page uses, "user/name".')
    space.add_argument(
        "--package_url", help="Where the Space gets this package, such as git+https://... Default: PyPI."
    )

    args = parser.parse_args(arguments)
    try:
        check_repo_id("--repo_id", args.repo_id)
        if args.kind == "space":
            check_repo_id("--model_id", args.model_id)
    except ValueError as error:
        parser.error(str(error))
    if args.dry_run != bool(args.output_dir):
        parser.error("--dry_run and --output_dir belong together: give both, or neither to push.")
    if args.dry_run and args.output_dir.exists():
        if not args.output_dir.is_dir() or any(args.output_dir.iterdir()):
            parser.error(f"--output_dir is {args.output_dir}, but a new or empty folder is needed.")
    return args


def write_revisions(revisions: Revisions, output_dir: Path) -> None:
    """Write the files of a repository into a folder, in a sub-folder for each revision if there are several."""
    for revision, files in revisions.items():
        folder = output_dir / revision if len(revisions) > 1 else output_dir
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)


def push_revisions(
    revisions: Revisions, repo_id: str, kind: Kind, private: bool = False, token: str | None = None
) -> str:
    """Make the repository if it does not exist, and let each revision hold exactly its files.

    Args:
        revisions: {revision: {path in the repository: path here, or content}}.
        repo_id: "user/name".
        kind: what the repository holds.
        private: whether a new repository is private.
        token: access token; None for the token of `hf auth login`.

    Returns:
        The address of the repository.
    """
    api = HfApi(token=token)
    url = api.create_repo(
        repo_id,
        repo_type=kind,
        private=private or None,
        exist_ok=True,
        space_sdk="gradio" if kind == "space" else None,
    )
    for revision, files in revisions.items():
        if revision != "main":
            api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
        present = set(api.list_repo_files(repo_id, repo_type=kind, revision=revision)) - {".gitattributes"}
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        operations += [CommitOperationDelete(name) for name in sorted(present - files.keys())]
        operations += [CommitOperationAdd(name, content) for name, content in files.items()]
        message = f"Publish with lsdm_diffusers {__version__}"
        api.create_commit(repo_id, operations, commit_message=message, repo_type=kind, revision=revision)
    return str(url)


def collect_revisions(args: argparse.Namespace) -> Revisions:
    """Collect and check the files that the command line asks for."""
    if args.kind == "model":
        folder = args.pretrained_model_name_or_path or Path(small_checkpoint())
        return model_files(folder, args.repo_id, args.results, args.results_name)
    if args.kind == "dataset":
        return dataset_files(args.dataset_dir)
    return space_files(args.model_id, args.package_url)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; `arguments` in place of those of the command line."""
    args = parse_args(arguments)
    try:
        revisions = collect_revisions(args)
    except (ValueError, ImportError) as error:  # ImportError: a component of a module that this version does not have
        raise SystemExit(f"Refused, nothing was pushed: {error}") from None
    if args.dry_run:
        write_revisions(revisions, args.output_dir)
        counts = "; ".join(f"{len(files)} files of revision {revision}" for revision, files in revisions.items())
        print(f"{args.output_dir} holds what would be pushed to {args.repo_id}: {counts}.")
        return
    try:
        print(f"published: {push_revisions(revisions, args.repo_id, args.kind, args.private, args.hub_token)}")
    except (HfHubHTTPError, HTTPError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SystemExit(f"{args.repo_id} was not published, or not wholly: {reason}") from None


if __name__ == "__main__":
    main()
