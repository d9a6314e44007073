"""The model card of a training run with its figures, and its way to the Hub."""

import argparse
import importlib.resources
import json
import math
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import DatasetCard, EvalResult, HfApi, ModelCard, ModelCardData

from ..io.atomic_write import write_atomically

TAGS = ["lsdm", "lung-ct", "medical", "semantic-image-synthesis"]
HIDDEN = (
    "hub_token",
    "output_dir",
    "latents_dir",
    "resume_from_checkpoint",
    "push_to_hub",
)  # they say nothing about the model


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """The Hub flags of diffusers' training scripts."""
    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="upload weights and card when done")
    hub.add_argument(
        "--hub_model_id", default=None, help='"user/name" of the repository; default: the name of --output_dir'
    )
    hub.add_argument("--hub_token", default=None, help="default: the one of `hf auth login`")
    hub.add_argument("--hub_private_repo", action="store_true", help="make a private repository")


def open_model_repository(args: argparse.Namespace) -> tuple[HfApi, str] | None:
    """Make or find the repository before the training, which takes hours; None without `--push_to_hub`."""
    if not args.push_to_hub:
        return None
    api, name = HfApi(token=args.hub_token), args.hub_model_id or args.output_dir.resolve().name
    try:
        return api, api.create_repo(name, private=args.hub_private_repo or None, exist_ok=True).repo_id
    except Exception as error:
        raise SystemExit(f"--push_to_hub cannot make or find {name} on the Hub: {error}") from None


def patients_of(dataset: Path) -> dict[str, int]:
    """Patients of each split of a prepared dataset, by its `splits.json`; empty where it has none."""
    splits = dataset / "splits.json"
    return (
        {split: len(patients) for split, patients in json.loads(splits.read_text()).items()}
        if splits.is_file()
        else {}
    )


def attribution_of(dataset: Path) -> str | None:
    """Licence and citation of a prepared dataset, by its card; None where it has no card that says so."""
    card = dataset / "README.md"
    if not card.is_file():
        return None
    section = DatasetCard.load(card, ignore_metadata_errors=True).text.partition("\n## Licence and citation\n")[2]
    return section.partition("\nMade by ")[0].strip() or None


def evaluation_results(figures: dict, dataset: str, split: str, setting: str) -> list[EvalResult]:
    """The entries of a card's `model-index`.

    Args:
        figures: {metric: {"mean": value}}, as in results.json of training/evaluate.py.
        dataset: its name.
        split: the evaluated split.
        setting: what the figures depend on; it stands beside those of a feature extractor, which mean nothing without it.
    """
    about = {"task_type": "image-to-image", "dataset_type": dataset, "dataset_name": dataset, "dataset_split": split}
    return [
        EvalResult(
            **about,
            metric_type=name,
            metric_value=round(value["mean"], 4),
            metric_name=f"{name} ({setting})" if "id" in name else name,
        )
        for name, value in figures.items()
    ]


def forget_origins(folder: Path) -> None:
    """Take out of the configs of a saved model or pipeline where each part was loaded from (`_name_or_path`): a path of this machine."""
    for path in (*folder.glob("config.json"), *folder.glob("*/config.json")):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            write_atomically(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def write_model_card(
    folder: Path, script: str, title: str, summary: str, args: argparse.Namespace, step: int, figures: dict, **text
) -> None:
    """Write README.md into the folder of a model, filled from its run.

    Args:
        folder: where the model was saved.
        script: name of the training script.
        title: of the card.
        summary: one sentence: what it is.
        args: the run's arguments; those of paths and secrets are left out.
        step: the last optimiser step.
        figures: name: number, of the validation split; those that are not finite are left out.
        text: the template's `example` and `picture`.
    """
    template = importlib.resources.files(__package__).joinpath("model_card.md").read_text(encoding="utf-8")
    dataset = args.dataset_name or args.train_data_dir
    local = Path(dataset).exists()
    arguments = {}
    for name, value in vars(args).items():
        if value is not None and name not in HIDDEN:
            value = (
                Path(value).name
                if isinstance(value, Path) or name in ("dataset_name", "train_data_dir") and Path(value).exists()
                else value
            )
            arguments[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers", pipeline_tag="image-to-image", tags=TAGS, datasets=None if local else [dataset]
        ),
        template_str=template,
        script=f"training/{script}",
        title=title,
        summary=summary,
        dataset=Path(dataset).name if local else f"`{dataset}`",
        patients=patients_of(Path(dataset)) if local else {},
        attribution=attribution_of(Path(dataset)) if local else None,
        arguments=arguments,
        step=step,
        figures={name: value for name, value in figures.items() if math.isfinite(value)},
        version=version("lsdm_diffusers"),
        **text,
    )
    write_atomically(folder / "README.md", (str(card).rstrip() + "\n").encode())


def upload_model(repository: tuple[HfApi, str], folder: Path) -> None:
    """Upload a saved model with its card, without checkpoints, latents and logs."""
    api, name = repository
    api.upload_folder(
        repo_id=name,
        folder_path=folder,
        ignore_patterns=["checkpoint-*", "part-*", "latents/*", "*.part", "log.jsonl"],
    )
    print(f"uploaded to {name}")
