"""What the evaluation scripts share: pipelines opened by name, and images that are made once and kept."""

import argparse
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from ..data.dataset import decode_image, encode_image
from ..io.atomic_write import write_atomically


def open_pipeline(path: str, scheduler: str | None = None) -> DiffusionPipeline:
    """A pipeline of this package, of whatever class its model_index.json names.

    Args:
        path: folder or Hub id.
        scheduler: name of a diffusers scheduler class that takes the place of the pipeline's own, with its configuration.

    Raises:
        SystemExit: for a pipeline of another package, or no such scheduler.
    """
    import lsdm_diffusers

    name = DiffusionPipeline.load_config(path)["_class_name"]
    if not hasattr(lsdm_diffusers, name):
        raise SystemExit(
            f"--pretrained_model_name_or_path {path} is a {name}, but a pipeline of lsdm_diffusers is needed."
        )
    pipe = getattr(lsdm_diffusers, name).from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    for part, module in pipe.components.items():
        if part == "vae" or part.endswith("_classifier") and module is not None:
            module.to(memory_format=torch.channels_last)  # makes guidance faster on a CPU
    if scheduler and hasattr(pipe, "scheduler"):
        if not hasattr(diffusers, scheduler):
            raise SystemExit(f"--scheduler is {scheduler}, but a scheduler class of diffusers is needed.")
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    return pipe


def model_paths(given: list[str], flag: str = "--pretrained_model_name_or_path") -> dict[str, str]:
    """{name: path} of "NAME=PATH" or "PATH"; without a name it is that of the folder, or the Hub id."""
    paths = {}
    for text in given:
        name, path = (
            text.split("=", 1)
            if "=" in text
            else (Path(text).name if Path(text).exists() else text.replace("/", "--"), text)
        )
        if name in paths:
            raise SystemExit(f"{flag} names {name} twice; tell them apart by NAME=PATH.")
        paths[name] = path
    return paths


def weights_digest(pipe: DiffusionPipeline) -> str:
    """Eight digits of weights and settings: images of others under the same name must not be taken for this model's."""
    digest = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if part is not None:
            settings = {key: value for key, value in part.config.items() if not key.startswith("_")}
            digest.update(f"{name} {json.dumps(settings, sort_keys=True, default=str)}".encode())
        if isinstance(part, torch.nn.Module):
            digest.update(
                b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in part.state_dict().values())
            )
    return digest.hexdigest()[:8]


def data_of(args: argparse.Namespace, splits: dict) -> dict[str, object]:
    """What says which maps the numbers of a run's images stand for, for `check_run`."""
    patients = hashlib.sha256(
        repr({name: list(split["patient_id"]) for name, split in sorted(splits.items())}).encode()
    )
    return {
        "dataset": Path(args.dataset_name or args.train_data_dir).name,
        "patients": patients.hexdigest()[:8],
        "split": args.split,
    }


def check_run(accelerator: Accelerator, output_dir: Path, run: dict[str, object]) -> None:
    """Write `run.json`, what the images of a folder were made of.

    Raises:
        SystemExit: where the folder has one that differs.
    """
    file, run = output_dir / "run.json", {name: str(value) for name, value in run.items()}
    if file.exists():
        kept = json.loads(file.read_text())
        other = [
            f"{name} {kept.get(name)} (not {run.get(name)})"
            for name in sorted(kept.keys() | run)
            if kept.get(name) != run.get(name)
        ]
        if other:
            raise SystemExit(
                f"--output_dir {output_dir} has what was made with {', '.join(other)}; take another folder."
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_atomically(file, (json.dumps(run, indent=1) + "\n").encode())


def noise_seed(seed: int, number: int) -> int:
    """The seed of the noise of a map by its number in the split, for one of the seeds of a run; no two share it below a million maps."""
    return 1_000_003 * seed + number


def image_folder(output_dir: Path, pipe: DiffusionPipeline, num_inference_steps: int, mixed_precision: str) -> Path:
    """Where the images of these weights, this scheduler and its steps are kept."""
    sampler = f"{type(pipe.scheduler).__name__}-{num_inference_steps}" if hasattr(pipe, "scheduler") else "one-step"
    return output_dir / "images" / weights_digest(pipe) / f"{sampler}-{mixed_precision}"


def sample_hu(pipe: DiffusionPipeline, semantic_maps: list[np.ndarray], seeds: list[int], **wanted) -> np.ndarray:
    """One slice of each map in HU, (B, H, W), int16, each from the noise of its own seed.

    Of `wanted`, arguments of the pipeline's call, those are passed on that it takes: a GAN has neither steps nor guidance.
    """
    taken = {name: value for name, value in wanted.items() if name in inspect.signature(pipe.__call__).parameters}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(semantic_maps, generator=generators, output_type="hu", **taken).images


def make_missing(
    accelerator: Accelerator, wanted: dict[Path, object], make: Callable, description: str, batch_size: int = 1
) -> None:
    """Make the images that are not there yet, shared among the processes.

    Args:
        wanted: {file: what `make` is told of it}.
        make: list of those to slices in HU, in the same order.
        batch_size: at most this many are made at a time.
    """
    todo = [item for item in wanted.items() if not item[0].exists()]
    accelerator.wait_for_everyone()  # until each has listed them: a file made meanwhile would shift the shares
    with accelerator.split_between_processes(todo) as own:
        starts: Iterable[int] = range(0, len(own), batch_size)
        for start in tqdm(
            starts, desc=description, leave=False, disable=not accelerator.is_local_main_process or not own
        ):
            files, told = zip(*own[start : start + batch_size], strict=True)
            with accelerator.autocast():
                made = make(list(told))
            for file, hu in zip(files, made, strict=True):
                write_atomically(file, encode_image(hu))
    accelerator.wait_for_everyone()


def read_hu(file: Path) -> np.ndarray:
    """A kept image in HU, (H, W), float32."""
    with Image.open(file) as image:
        return decode_image(image)
