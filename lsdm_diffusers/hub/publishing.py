"""The model card of a training run with its figures, and the upload of a trained model to the Hub."""

import argparse
import importlib.resources
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from httpx import HTTPError
from huggingface_hub import DatasetCard, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from ..io.atomic_write import write_atomically
from ..version import __version__

TAGS = ["lsdm", "lung-ct", "medical", "semantic-image-synthesis"]
NOT_ON_THE_CARD = {"hub_token", "output_dir", "latents_dir", "resume_from_checkpoint", "push_to_hub"}
DATASET_ARGUMENTS = {"dataset_name", "train_data_dir"}
NOT_UPLOADED = ["checkpoint-*", "part-*", "latents/*", "*.part", "log.jsonl"]
FEATURE_DISTANCES = ("fid", "kid")  # ends of the names of metrics that depend on a feature extractor
METRIC_DIGITS = 4  # decimals of a figure in the card's `model-index`


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the Hub flags that diffusers' training scripts have."""
    hub = parser.add_argument_group("Hub")
    hub.add_argument(
        "--push_to_hub", action="store_true", help="Upload the weights and the model card when training is done."
    )
    hub.add_argument(
        "--hub_model_id",
        default=None,
        help='Repository on the Hub, "user/name". Default: the name of --output_dir in your account.',
    )
    hub.add_argument("--hub_token", default=None, help="Access token. Default: the token of `hf auth login`.")
    hub.add_argument(
        "--hub_private_repo", action="store_true", help="Make a private repository if it does not exist yet."
    )


def open_model_repository(
    push_to_hub: bool,
    output_dir: Path,
    hub_model_id: str | None = None,
    token: str | None = None,
    private: bool = False,
) -> tuple[HfApi, str] | None:
    """Make or find the repository, so that a wrong token or name shows before hours of training.

    Args:
        push_to_hub: False makes no request and returns None.
        output_dir: folder of the run, whose name is the default name of the repository.
        hub_model_id: "user/name", or a name in the account of the token.
        token: access token; None for the token of `hf auth login`.
        private: whether a new repository is private.

    Returns:
        The API with the token, and the full name of the repository, for `upload_model`.

    Raises:
        ValueError: if the repository cannot be made or found.
    """
    if not push_to_hub:
        return None
    api, name = HfApi(token=token), hub_model_id or output_dir.resolve().name
    try:
        return api, api.create_repo(name, private=private or None, exist_ok=True).repo_id
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise ValueError(f"--push_to_hub cannot make or find {name} on the Hub: {error}") from error


def patients_of(dataset: Path) -> dict[str, int]:
    """Number of patients in each split of a prepared dataset, read from its `splits.json`; empty if it has none."""
    splits = dataset / "splits.json"
    if not splits.is_file():
        return {}
    return {split: len(patients) for split, patients in json.loads(splits.read_text()).items()}


def attribution_of(dataset: Path) -> str | None:
    """Licence and citation of a prepared dataset, read from its card; None if it has no card with that section."""
    card = dataset / "README.md"
    if not card.is_file():
        return None
    section = DatasetCard.load(card, ignore_metadata_errors=True).text.partition("\n## Licence and citation\n")[2]
    return section.partition("\nMade by ")[0].strip() or None


def evaluation_results(
    figures: Mapping[str, Mapping[str, float]], dataset: str, split: str, setting: str
) -> list[EvalResult]:
    """Make the entries of a model card's `model-index`.

    Args:
        figures: {metric: {"mean": value}}, as in the results.json of training/evaluate.py.
        dataset: name of the dataset.
        split: the evaluated split.
        setting: feature extractor and sampling. It is part of the name of FID and KID, which can only be compared
            at the same setting.
    """
    return [
        EvalResult(
            task_type="image-to-image",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=split,
            metric_type=name,
            metric_value=round(value["mean"], METRIC_DIGITS),
            metric_name=f"{name} ({setting})" if name.endswith(FEATURE_DISTANCES) else name,
        )
        for name, value in figures.items()
    ]


def forget_origins(folder: Path) -> None:
    """Remove `_name_or_path`, a path of the machine, from the configs of a saved model or pipeline."""
    for path in (*folder.glob("config.json"), *folder.glob("*/config.json")):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            write_atomically(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def card_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run as its card shows them: without secrets, and with the last part of each path only."""
    shown = {}
    for name, value in arguments.items():
        if value is None or name in NOT_ON_THE_CARD:
            continue
        if isinstance(value, Path) or (name in DATASET_ARGUMENTS and Path(value).exists()):
            shown[name] = Path(value).name
        elif isinstance(value, list):
            shown[name] = " ".join(map(str, value))
        else:
            shown[name] = value
    return shown


def write_model_card(
    folder: Path,
    *,
    script: str,
    title: str,
    summary: str,
    dataset: str | Path,
    arguments: Mapping[str, Any],
    step: int,
    figures: Mapping[str, float],
    example: str | None = None,
    picture: str | None = None,
) -> None:
    """Write the README.md of a trained model.

    Args:
        folder: where the model was saved.
        script: file name of the training script.
        title: title of the card.
        summary: one sentence that says what the model is.
        dataset: folder or Hub id of the training data. The card takes patients and licence from a folder.
        arguments: the run's arguments; secrets and output folders are left out.
        step: the last optimiser step.
        figures: {name: number} of the validation split; numbers that are not finite are left out.
        example: Python code that uses the model.
        picture: file name of a picture in `folder`.
    """
    local = Path(dataset).exists()
    template = importlib.resources.files(__package__).joinpath("model_card.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            pipeline_tag="image-to-image",
            tags=TAGS,
            datasets=None if local else [str(dataset)],
        ),
        template_str=template,
        script=f"training/{script}",
        title=title,
        summary=summary,
        dataset=Path(dataset).name if local else f"`{dataset}`",
        patients=patients_of(Path(dataset)) if local else {},
        attribution=attribution_of(Path(dataset)) if local else None,
        arguments=card_arguments(arguments),
        step=step,
        figures={name: value for name, value in figures.items() if math.isfinite(value)},
        version=__version__,
        example=example,
        picture=picture,
    )
    write_atomically(folder / "README.md", (str(card).rstrip() + "\n").encode())


def upload_model(repository: tuple[HfApi, str], folder: Path) -> None:
    """Upload a saved model with its card, without checkpoints, latents and logs.

    Args:
        repository: what `open_model_repository` returned.
        folder: where the model was saved.
    """
    api, name = repository
    api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=NOT_UPLOADED)
    print(f"uploaded to {name}")
