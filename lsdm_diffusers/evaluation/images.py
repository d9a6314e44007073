"""Pipelines opened by name, and images that are made once and kept: what the evaluation scripts share."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from PIL import Image
from tqdm.auto import tqdm

from ..ct_noise import CTNoise, add_grain, check_grain
from ..data.dataset import decode_image, encode_image
from ..hounsfield import HU_MAX, HU_MIN
from ..io.atomic_write import write_atomically
from ..latents import decode_latents, encode_pixels
from ..nodule_features import NODULE_FEATURES

Job = TypeVar("Job")
SEED_STRIDE = 1_000_003  # a prime above the number of maps of any split, so that two seeds never share a noise
DIGEST_DIGITS = 8  # of a SHA-256 in the name of a folder


def open_pipeline(path: str | Path, scheduler: str | None = None) -> DiffusionPipeline:
    """Open a pipeline of this package, of the class that its model_index.json names.

    Args:
        path: folder or Hub id.
        scheduler: name of a diffusers scheduler class that replaces the pipeline's own, with the same configuration.

    Raises:
        ValueError: for a pipeline of another package, or a scheduler that diffusers does not have.
    """
    import lsdm_diffusers

    class_name = DiffusionPipeline.load_config(path)["_class_name"]
    if not hasattr(lsdm_diffusers, class_name):
        raise ValueError(f"`path` {path} holds a {class_name}, but a pipeline of lsdm_diffusers is needed.")
    pipe = getattr(lsdm_diffusers, class_name).from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    prefer_channels_last(pipe)
    if scheduler and hasattr(pipe, "scheduler"):
        pipe.scheduler = scheduler_class(scheduler).from_config(pipe.scheduler.config)
    return pipe


def prefer_channels_last(pipe: DiffusionPipeline) -> None:
    """Store the weights of the autoencoder and the classifiers channels last, which makes guidance faster on a CPU."""
    for name, component in pipe.components.items():
        is_guiding = name == "vae" or name.endswith("_classifier")
        if is_guiding and component is not None:
            component.to(memory_format=torch.channels_last)


def scheduler_class(name: str) -> type[SchedulerMixin]:
    """The scheduler class of diffusers with this name.

    Raises:
        ValueError: where diffusers has no such scheduler.
    """
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(f"`scheduler` is {name}, but a scheduler class of diffusers is needed.")
    return found


def guidable_features(pipe: DiffusionPipeline) -> list[str]:
    """The nodule features that a pipeline has a classifier for, in the order of `NODULE_FEATURES`."""
    return [name for name in NODULE_FEATURES if getattr(pipe, f"{name}_classifier", None) is not None]


def model_paths(arguments: Sequence[str]) -> dict[str, str]:
    """Read "NAME=PATH" or "PATH" arguments.

    Args:
        arguments: folders or Hub ids. Without a name, a model is called by its folder or its Hub id.

    Returns:
        {name: path}.

    Raises:
        ValueError: where two models have the same name.
    """
    paths: dict[str, str] = {}
    for argument in arguments:
        if "=" in argument:
            name, path = argument.split("=", 1)
        else:
            name, path = argument.replace("/", "--"), argument
            if Path(path).exists():
                name = Path(path).name
        if name in paths:
            raise ValueError(f"the model name {name} is given twice; tell them apart by NAME=PATH.")
        paths[name] = path
    return paths


def weights_digest(pipe: DiffusionPipeline) -> str:
    """Eight hexadecimal digits of a pipeline's weights and settings.

    They are part of the folder's name, so that images of other weights under the same model name are never reused.
    """
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if component is not None:
            settings = {key: value for key, value in component.config.items() if not key.startswith("_")}
            digest.update(f"{name} {json.dumps(settings, sort_keys=True, default=str)}".encode())
        if isinstance(component, torch.nn.Module):
            tensors = (tensor.detach().cpu().contiguous() for tensor in component.state_dict().values())
            digest.update(b"".join(tensor.numpy().tobytes() for tensor in tensors))
    return digest.hexdigest()[:DIGEST_DIGITS]


def data_identity(dataset: str, splits: Mapping[str, Dataset], split: str) -> dict[str, str]:
    """What identifies the maps of a run, for `check_run`: the dataset's name, its patients and the evaluated split."""
    patients = {name: list(rows["patient_id"]) for name, rows in sorted(splits.items())}
    digest = hashlib.sha256(repr(patients).encode()).hexdigest()
    return {"dataset": Path(dataset).name, "patients": digest[:DIGEST_DIGITS], "split": split}


def check_run(accelerator: Accelerator, output_dir: Path, run: Mapping[str, object]) -> None:
    """Write `run.json`, which says what the images of a folder were made of, or compare with the one that is there.

    Args:
        accelerator: its main process writes the file.
        output_dir: folder of the images.
        run: {name: value}; the values are compared as text.

    Raises:
        ValueError: where the folder holds images of another run.
    """
    file, current = output_dir / "run.json", {name: str(value) for name, value in run.items()}
    if file.exists():
        kept = json.loads(file.read_text())
        differences = [
            f"{name} {kept.get(name)} (not {current.get(name)})"
            for name in sorted(kept.keys() | current)
            if kept.get(name) != current.get(name)
        ]
        if differences:
            found = ", ".join(differences)
            raise ValueError(f"`output_dir` {output_dir} has what was made with {found}; take another folder.")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_atomically(file, (json.dumps(current, indent=1) + "\n").encode())


def noise_seed(seed: int, number: int) -> int:
    """The seed of one map's noise.

    Args:
        seed: of the run.
        number: of the map in its split, below a million.
    """
    return SEED_STRIDE * seed + number


def image_folder(output_dir: Path, pipe: DiffusionPipeline, num_inference_steps: int, mixed_precision: str) -> Path:
    """The folder that keeps the images of these weights, this scheduler and this number of steps."""
    sampler = sampler_name(pipe, num_inference_steps)
    return output_dir / "images" / weights_digest(pipe) / f"{sampler}-{mixed_precision}"


def sampler_name(pipe: DiffusionPipeline, num_inference_steps: int) -> str:
    """Scheduler and number of steps as part of a folder's name; "one-step" for a GAN, which has no scheduler."""
    return f"{type(pipe.scheduler).__name__}-{num_inference_steps}" if hasattr(pipe, "scheduler") else "one-step"


def sample_hu(
    pipe: DiffusionPipeline, semantic_maps: Sequence[np.ndarray], seeds: Sequence[int], **call_arguments: Any
) -> np.ndarray:
    """Sample one slice of each map, each from the noise of its own seed.

    Args:
        pipe: a pipeline of this package.
        semantic_maps: (H, W) each, labels 0..7.
        seeds: one for each map.
        **call_arguments: arguments of the pipeline's call. Those that it does not take are left out: a GAN has neither
            steps nor guidance.

    Returns:
        (B, H, W), int16, in HU.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    accepted = {name: value for name, value in call_arguments.items() if name in parameters}
    if accepted.get("nodule_features") is None:
        accepted.pop("guidance_scale", None)  # an unguided arm has none
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(list(semantic_maps), generator=generators, output_type="hu", **accepted).images


def make_missing(
    accelerator: Accelerator,
    jobs: Mapping[Path, Job],
    make_batch: Callable[[list[Job]], Iterable[np.ndarray]],
    description: str,
    batch_size: int = 1,
) -> None:
    """Make the images that do not exist yet; the processes share the work.

    Args:
        accelerator: its processes share the work.
        jobs: {file of an image: the job that makes it}.
        make_batch: turns a list of jobs into slices (H, W) in HU, in the same order.
        description: of the progress bar.
        batch_size: number of jobs that are made together.
    """
    missing = [(file, job) for file, job in jobs.items() if not file.exists()]
    accelerator.wait_for_everyone()  # all list the files before one is made: otherwise the shares would shift
    with accelerator.split_between_processes(missing) as share:
        hide = not accelerator.is_local_main_process or not share
        for start in tqdm(range(0, len(share), batch_size), desc=description, leave=False, disable=hide):
            batch = share[start : start + batch_size]
            with accelerator.autocast():
                images = make_batch([job for _, job in batch])
            for (file, _), hu in zip(batch, images, strict=True):
                write_atomically(file, encode_image(hu))
    accelerator.wait_for_everyone()


def shared_ct_noise(paths: Iterable[str], grain: float) -> CTNoise | None:
    """The CT noise of the first of these pipelines that has one, for the images of all; None with grain 0.

    Args:
        paths: folders or Hub ids.
        grain: how much noise is added.

    Raises:
        ValueError: for a bad `grain`, or where no pipeline has measured noise.
    """
    configs = (DiffusionPipeline.load_config(path).get("ct_noise") for path in paths) if grain else ()
    config = next((config for config in configs if config), None)
    check_grain(grain, config)
    return None if config is None else CTNoise.from_config(config)


def grained(hu: np.ndarray, semantic_map: np.ndarray, noise: CTNoise | None, grain: float, seed: int) -> np.ndarray:
    """A slice (H, W) in HU with CT noise of its own seed, float32, in the range of HU; without noise, as it is."""
    if noise is None:
        return hu
    generator = torch.Generator().manual_seed(seed)
    noisy = add_grain(torch.from_numpy(hu), torch.tensor(semantic_map), noise, grain, generator)
    return noisy.clamp(HU_MIN, HU_MAX).numpy()


def read_hu(file: Path) -> np.ndarray:
    """A kept image in HU, (H, W), float32."""
    with Image.open(file) as image:
        return decode_image(image)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: torch.Tensor, batch_size: int = 16) -> torch.Tensor:
    """D(E(x)): images encoded and decoded, on the autoencoder's device and in its dtype.

    Args:
        vae: the autoencoder.
        pixels: (N, 1, H, W) in [-1, 1].
        batch_size: images at a time, which bounds the memory.

    Returns:
        (N, 1, H, W), around [-1, 1] and not clipped.
    """
    batches = pixels.to(vae.device, vae.dtype).split(batch_size)
    return torch.cat([decode_latents(vae, encode_pixels(vae, batch)) for batch in batches])
