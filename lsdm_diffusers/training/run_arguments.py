"""The flags of optimisation and run that all training scripts have, and the settings that a run takes from them."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SCHEDULES = ("constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial")


def add_optimisation_arguments(
    parser: argparse.ArgumentParser, *, batch: str, more_schedules: Sequence[str] = (), **defaults: Any
) -> argparse._ArgumentGroup:
    """Add the optimisation flags that all training scripts have.

    Args:
        parser: the script's parser.
        batch: what one process sees in one backward pass, for the help of `--train_batch_size`.
        more_schedules: learning rate schedules that the script offers beside those of diffusers.
        defaults: the script's own defaults, by the names of the flags.

    Returns:
        The group "optimisation", for further flags.
    """
    group = parser.add_argument_group("optimisation")
    group.add_argument("--train_batch_size", type=int, default=1, help=f"Number of {batch}. Default: %(default)s.")
    group.add_argument(
        "--max_train_steps", type=int, default=1500, help="Number of optimiser steps. Default: %(default)s."
    )
    group.add_argument(
        "--learning_rate",
        type=float,
        default=1e-4,
        help="Highest learning rate of the schedule. Default: %(default)s.",
    )
    group.add_argument(
        "--lr_scheduler",
        choices=(*more_schedules, *SCHEDULES),
        default="constant_with_warmup",
        help="Schedule of the learning rate. Default: %(default)s.",
    )
    group.add_argument(
        "--lr_warmup_steps",
        type=int,
        default=0,
        help="Optimiser steps in which the learning rate rises from 0. Default: %(default)s.",
    )
    group.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="Backward passes whose gradients one optimiser step averages. Default: %(default)s.",
    )
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="Compute activations again in the backward pass: less memory, more time.",
    )
    group.add_argument(
        "--max_grad_norm",
        type=float,
        default=1.0,
        help="Gradients with a larger norm are scaled down to this norm. Default: %(default)s.",
    )
    group.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default=None,
        help="Number format of the forward pass. bf16 is fast only on hardware that supports it. None stands for the "
        "setting of `accelerate config`. Default: %(default)s.",
    )
    group.add_argument(
        "--use_ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Validate and save the exponential moving average of the weights (EMA), not the weights themselves. "
        "Default: on.",
    )
    group.add_argument(
        "--ema_max_decay",
        type=float,
        default=0.9999,
        help="Decay of the moving average, 0..1. After n steps it is (1 + n) / (10 + n), but at most this value. "
        "Default: %(default)s.",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        help="Seed of the first weights, of the batches and of the noise. Default: %(default)s.",
    )
    parser.set_defaults(**defaults)
    return group


def add_run_arguments(parser: argparse.ArgumentParser, *, contents: str, **defaults: Any) -> argparse._ArgumentGroup:
    """Add the flags of the run's folder, checkpoints and validation that all training scripts have.

    Args:
        parser: the script's parser.
        contents: what the script writes, for the help of `--output_dir`.
        defaults: the script's own defaults, by the names of the flags.

    Returns:
        The group "run", for further flags.
    """
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", type=Path, required=True, help=f"Folder of the run, for {contents}.")
    group.add_argument(
        "--validation_steps", type=int, default=500, help="Validate every N optimiser steps. Default: %(default)s."
    )
    group.add_argument(
        "--checkpointing_steps",
        type=int,
        default=250,
        help="Write a checkpoint-N every N optimiser steps. Default: %(default)s.",
    )
    group.add_argument(
        "--checkpoints_total_limit",
        type=int,
        default=2,
        help="Number of the newest checkpoints that are kept; 0 keeps all. Default: %(default)s.",
    )
    group.add_argument(
        "--resume_from_checkpoint",
        default=None,
        help='Checkpoint that the run continues from: a folder checkpoint-N, or "latest" for the newest one in '
        '--output_dir. Without any checkpoint, "latest" starts a new run.',
    )
    group.add_argument(
        "--report_to",
        default=None,
        help="Tracker that the losses and figures are sent to: tensorboard, wandb or trackio.",
    )
    parser.set_defaults(**defaults)
    return group


@dataclass(frozen=True)
class RunSettings:
    """The flags of `add_optimisation_arguments` and `add_run_arguments` that a run itself needs.

    Raises:
        ValueError: if a number of steps is too small.
    """

    output_dir: Path
    max_train_steps: int
    gradient_accumulation_steps: int = 1
    mixed_precision: str | None = None
    use_ema: bool = True
    ema_max_decay: float = 0.9999
    seed: int = 0
    validation_steps: int = 500
    checkpointing_steps: int = 250
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | None = None
    report_to: str | None = None

    def __post_init__(self) -> None:
        for name in ("gradient_accumulation_steps", "validation_steps", "checkpointing_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, but at least 1 is needed.")
        if self.checkpoints_total_limit < 0:
            raise ValueError(
                f"--checkpoints_total_limit is {self.checkpoints_total_limit}, but 0 (all) or more is needed."
            )

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "RunSettings":
        """Pick the settings out of all arguments of a script, `vars(args)`."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})
