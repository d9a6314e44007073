"""The model card of a training run, and its way to the Hub."""

import argparse
import math
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

from .ct_dataset import write_atomically

HIDDEN = ("hub_token", "output_dir", "latents_dir", "resume_from_checkpoint", "push_to_hub")  # they say nothing about the model


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """The Hub flags of diffusers' training scripts."""
    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="upload weights and card when done")
    hub.add_argument("--hub_model_id", default=None, help='"user/name" of the repository; default: the name of --output_dir')
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


def write_model_card(folder: Path, script: str, title: str, summary: str, args: argparse.Namespace, step: int, figures: dict, **text) -> None:
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
    template = Path(__file__).parents[1] / "hub_cards" / "model_card.md"
    dataset = args.dataset_name or args.train_data_dir
    arguments = {}
    for name, value in vars(args).items():
        if value is not None and name not in HIDDEN:
            value = Path(value).name if isinstance(value, Path) or name in ("dataset_name", "train_data_dir") and Path(value).exists() else value
            arguments[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    card = ModelCard.from_template(
        ModelCardData(library_name="diffusers", pipeline_tag="image-to-image", tags=["lsdm", "lung-ct", "medical", "semantic-image-synthesis"]),
        template_path=str(template),
        script=f"training/{script}",
        title=title,
        summary=summary,
        dataset=Path(dataset).name if Path(dataset).exists() else f"`{dataset}`",
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
    api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=["checkpoint-*", "part-*", "latents/*", "*.part", "log.jsonl"])
    print(f"uploaded to {name}")
