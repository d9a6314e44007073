"""What the console commands share: a parser, checks of arguments, and the loading of a pipeline."""

import argparse
import importlib.util
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from .pipeline_lsdm import LSDMGuidedPipeline

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
FORMATS = {"png": None, "npy": None, "nifti": "nibabel", "dicom": "pydicom"}  # and the library that is needed


class OneLineParser(argparse.ArgumentParser):
    """Ends with one line where an argument is wrong, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def check_writable(output: Path) -> None:
    """Check that a file can be written in a folder, by writing one and removing it and each new folder again.

    The permissions alone do not tell: the disk may be mounted read-only, and a name may be too long.

    Raises:
        ValueError: if it cannot.
    """
    missing: list[Path] = []
    try:
        for folder in (output, *output.absolute().parents):
            if folder.exists():
                break
            missing.append(folder)
        if not folder.is_dir():
            raise ValueError(f"`--output` is {output}, but {folder} is a file, and a folder is needed.")
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"`--output` is {output}, but no file can be written there: {error.strerror}.") from None
    finally:
        for folder in missing:  # the innermost first
            if os.path.isdir(folder):  # unlike Path.is_dir, it is False for a name that is too long
                folder.rmdir()


def check_formats(formats: Sequence[str]) -> None:
    """Check that the library of each format is installed.

    Raises:
        ValueError: if it is not.
    """
    for name in formats:
        library = FORMATS[name]
        if library is not None and importlib.util.find_spec(library) is None:
            raise ValueError(
                f'`--format` has {name}, but {library} is not installed; install it, or the extra "demo" of '
                "lsdm_diffusers."
            )


def requested_features(args: argparse.Namespace) -> dict[str, str | float]:
    """The nodule features that the command line asks for, as `nodule_features` of the pipeline takes them.

    Raises:
        ValueError: for a value that is not allowed.
    """
    from .nodule_features import NODULE_FEATURES, feature_target

    features: dict[str, str | float] = {}
    for name in NODULE_FEATURES:
        value = getattr(args, name)
        if value is not None:
            features[name] = _number_or_word(value)
            feature_target(name, features[name])
    return features


def requested_method(words: Sequence[str] | None) -> str | dict[str, str] | None:
    """`guidance_method` of the pipeline from the words of the flag: one name, or feature=name."""
    if words is None or (len(words) == 1 and "=" not in words[0]):
        return words[0] if words else None
    for word in words:
        if "=" not in word:
            raise ValueError(f"`--guidance_method` has {word!r} among several, but FEATURE=METHOD is needed there.")
    return {feature: method for feature, _, method in (word.partition("=") for word in words)}


def _number_or_word(value: str | float) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


def scheduler_class(name: str) -> "type[SchedulerMixin]":
    """The class of diffusers' scheduler `name`.

    Raises:
        ValueError: for another name, for a scheduler whose package is missing, or for a flow-matching scheduler,
            which fits no model of noise or v.
    """
    import diffusers
    from diffusers.utils import DummyObject

    found = getattr(diffusers, name, None)
    if isinstance(found, DummyObject):  # stands for a class whose package is missing
        missing = " ".join(package for package in found._backends if importlib.util.find_spec(package) is None)
        raise ValueError(f"`--scheduler` is {name!r}, but a package that it needs is missing: pip install {missing}")
    if not isinstance(found, type) or not issubclass(found, diffusers.SchedulerMixin):
        raise ValueError(
            f"`--scheduler` is {name!r}, but a diffusers scheduler class such as DDIMScheduler is needed."
        )
    if not hasattr(found, "add_noise"):
        raise ValueError(
            f"`--scheduler` is {name!r}, but a flow-matching scheduler fits no model of noise or v; use DDIMScheduler."
        )
    return found


def load_pipeline(
    checkpoint: str,
    scheduler: str | None,
    device: str | None,
    pipeline_class: "type[LSDMGuidedPipeline] | None" = None,
) -> "LSDMGuidedPipeline":
    """Load the pipeline for fast guidance on a device.

    Args:
        checkpoint: folder or Hub id.
        scheduler: name of a diffusers scheduler class, or None for the checkpoint's own.
        device: torch device, or None for cuda where there is one, otherwise cpu.
        pipeline_class: `LSDMGuidedPipeline`, which None stands for, or one that is derived from it.

    Raises:
        ValueError: for a scheduler or device that does not exist.
        OSError: for a checkpoint that cannot be loaded.
    """
    import torch

    from .pipeline_lsdm import LSDMGuidedPipeline

    exchanged = None if scheduler is None else scheduler_class(scheduler)
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"`--device` is {device!r}, but a torch device such as cpu or cuda is needed.") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`--device` is {device!r}, but torch finds no CUDA device here.")
    try:
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError):  # a type that this torch lacks, a number too high, or "meta"
        raise ValueError(f"`--device` is {device!r}, but torch cannot use that device here.") from None
    pipe: LSDMGuidedPipeline = (pipeline_class or LSDMGuidedPipeline).from_pretrained(checkpoint).to(place)
    for module in (pipe.vae, *pipe.classifiers.values()):
        module.to(memory_format=torch.channels_last)  # makes guidance faster on a CPU
    if exchanged is not None:
        pipe.scheduler = exchanged.from_config(pipe.scheduler.config)
    return pipe
