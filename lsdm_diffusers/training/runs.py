"""What the four training scripts share of a run: processes, checkpoints, averaged weights and log.

Data, model, loss and loop of a stage stand in its script, which uses a run like this:

    run = TrainingRun(RunSettings.from_arguments(vars(args)))
    unet, optimizer = run.accelerator.prepare(unet, optimizer)
    run.start(run.accelerator.unwrap_model(unet), [schedule], "lsdm-unet", vars(args))
    while run.step < args.max_train_steps:
        batch = draw_batch(run.batch_number)
        with run.accelerator.accumulate(unet):
            loss = compute_loss(unet, batch)
            run.check_finite(loss=loss)
            run.accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if run.advance({"loss": loss}) and run.validation_is_due:
            with run.averaged_weights():
                run.log(validate(unet))
"""

import json
import math
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..io.atomic_write import write_atomically
from .run_arguments import RunSettings

PROCESS_TIMEOUT = timedelta(days=1)  # the other processes wait while one encodes the dataset or validates
SEED_STRIDE = 1_000_003  # above the number of batches of a run, so that no two seeds draw the same noise
STEPS_OF_MEAN_LOSS = 200  # the training loss that is logged is the mean over these last steps
STEPS_OF_PROGRESS_BAR = 50  # the progress bar follows faster

Figures = Mapping[str, float] | Mapping[str, Mapping[str, float]]  # numbers by name, or groups of such numbers


class TrainingRun:
    """A training run in a folder: whole checkpoints, resuming, averaged weights, log and progress bar.

    Everything that a step draws depends on the seed and on `batch_number` only. So a run that was killed and resumed
    ends with the weights of an uninterrupted one.

    Args:
        settings: the flags of the run.

    Attributes:
        accelerator: the `Accelerator` that the script prepares its models and optimisers with.
        step: number of optimiser steps done.
        batch_number: number of the batch that this process draws next, counted over the batches of all processes.

    Raises:
        ValueError: if the folder has checkpoints but the settings do not resume, or if there is no such checkpoint.
    """

    def __init__(self, settings: RunSettings):
        self.settings, self.output_dir = settings, settings.output_dir
        self.accelerator = Accelerator(
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            mixed_precision=settings.mixed_precision,
            log_with=settings.report_to,
            project_dir=settings.output_dir,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
        )
        self._resume_from = self._checkpoint_to_resume()
        self.step = 0 if self._resume_from is None else checkpoint_step(self._resume_from)
        self._backward_passes = self.step * settings.gradient_accumulation_steps
        self._recent_losses: deque[dict[str, float]] = deque(maxlen=STEPS_OF_MEAN_LOSS)
        set_seed(settings.seed)

    def _checkpoint_to_resume(self) -> Path | None:
        saved, resume = checkpoints(self.output_dir), self.settings.resume_from_checkpoint
        if not resume:
            if saved:
                raise ValueError(
                    f"--output_dir {self.output_dir} has checkpoints of another run; "
                    "--resume_from_checkpoint latest continues it."
                )
            return None
        if resume == "latest":
            return saved[-1] if saved else None
        folder = Path(resume)
        if not folder.is_dir() or not is_checkpoint(folder):
            raise ValueError(
                f'--resume_from_checkpoint is {resume}, but "latest" or an existing folder checkpoint-N is needed.'
            )
        return folder

    def start(
        self, model: torch.nn.Module, schedules: Sequence[Any], tracker: str, arguments: Mapping[str, Any]
    ) -> None:
        """Begin the steps, after `accelerator.prepare`: load the checkpoint if there is one to resume from.

        Args:
            model: the trained model itself, unwrapped, whose weights are averaged.
            schedules: learning rate schedules, which make one step for each optimiser step.
            tracker: name of the project in the tracker of `report_to`.
            arguments: the script's arguments, for the tracker.
        """
        settings, device = self.settings, self.accelerator.device
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.model, self.schedules = model, list(schedules)
        # a decay of 0 makes the average equal to the weights
        self.ema = EMAModel(model.parameters(), decay=settings.ema_max_decay if settings.use_ema else 0)
        self.accelerator.register_for_checkpointing(self.ema, *self.schedules)
        if settings.report_to:
            self.accelerator.init_trackers(tracker, config={name: str(value) for name, value in arguments.items()})
        if self._resume_from is not None:
            self.accelerator.load_state(str(self._resume_from))
        self.ema.to(device)  # after loading, which leaves registered objects on the CPU
        self.progress = tqdm(
            total=settings.max_train_steps,
            initial=self.step,
            disable=not self.accelerator.is_local_main_process,
            mininterval=5,
        )

    @property
    def batch_number(self) -> int:
        return self._backward_passes * self.accelerator.num_processes + self.accelerator.process_index

    def noise_generator(self) -> torch.Generator:
        """The generator, on the CPU, of the noise for the batch `batch_number`."""
        return torch.Generator().manual_seed(self.settings.seed * SEED_STRIDE + self.batch_number)

    def check_finite(self, **losses: torch.Tensor) -> None:
        """Stop a run that has diverged, before it writes another checkpoint.

        Raises:
            RuntimeError: if a loss is infinite or not a number.
        """
        if not all(torch.isfinite(loss) for loss in losses.values()):
            values = " and the ".join(f"{name.replace('_', ' ')} is {loss.item()}" for name, loss in losses.items())
            raise RuntimeError(f"The {values} at step {self.step}; the last good checkpoint is in {self.output_dir}.")

    def advance(self, losses: Mapping[str, torch.Tensor]) -> bool:
        """Count a backward pass; after an optimiser step, update schedules, average, log and checkpoints.

        Args:
            losses: loss and parts of it, scalars, by name.

        Returns:
            Whether the pass ended an optimiser step. False means that gradients are still being accumulated.
        """
        self._backward_passes += 1
        if not self.accelerator.sync_gradients:
            return False
        for schedule in self.schedules:
            schedule.step()
        self.ema.step(self.model.parameters())
        self.step += 1
        values = {name: loss.item() for name, loss in losses.items()}
        self._recent_losses.append(values)
        self.progress.update()
        self.progress.set_postfix(self.mean_losses(STEPS_OF_PROGRESS_BAR), refresh=False)
        self.accelerator.log(values, step=self.step)
        if self.accelerator.is_main_process and self.step % self.settings.checkpointing_steps == 0:
            self.save_checkpoint()
        return True

    def mean_losses(self, steps: int = STEPS_OF_MEAN_LOSS) -> dict[str, float]:
        """The mean of each loss over the last `steps` optimiser steps of this process, at most 200."""
        recent = list(self._recent_losses)[-steps:]
        names = recent[-1] if recent else {}
        return {name: float(np.mean([losses[name] for losses in recent if name in losses])) for name in names}

    def save_checkpoint(self) -> None:
        """Write checkpoint-N, whole or not at all, and remove the oldest ones above the limit."""
        part = self.output_dir / f"part-{self.step}"  # gets its name when it is whole
        shutil.rmtree(part, ignore_errors=True)
        self.accelerator.save_state(str(part))
        part.rename(self.output_dir / f"checkpoint-{self.step}")
        if self.settings.checkpoints_total_limit:
            for old in checkpoints(self.output_dir)[: -self.settings.checkpoints_total_limit]:
                shutil.rmtree(old)

    @property
    def validation_is_due(self) -> bool:
        """Whether this process validates now: the main one, every `validation_steps` and after the last step."""
        is_last = self.step == self.settings.max_train_steps
        return self.accelerator.is_main_process and (self.step % self.settings.validation_steps == 0 or is_last)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Give the model its averaged weights and set it to evaluation inside the context."""
        was_training = self.model.training
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        self.model.eval()
        try:
            yield
        finally:
            self.ema.restore(self.model.parameters())
            self.model.train(was_training)

    def log(self, figures: Figures) -> None:
        """Send validation figures to the tracker, append them to log.jsonl and print them.

        Args:
            figures: numbers by name, or groups of such numbers. A number that is not finite is null in the file.
        """
        self.accelerator.log(flat_figures(figures), step=self.step)
        seconds = round(self.progress.format_dict["elapsed"])
        with open(self.output_dir / "log.jsonl", "a") as log:
            print(json.dumps({"step": self.step, "seconds": seconds, **json_figures(figures)}), file=log)
        tqdm.write(figures_text(f"step {self.step}:", figures))

    def write_validation(self, figures: Figures) -> None:
        """Write the last validation figures to validation.json."""
        content = json.dumps({"step": self.step, **json_figures(figures)}, indent=1) + "\n"
        write_atomically(self.output_dir / "validation.json", content.encode())


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is named checkpoint-N."""
    return re.fullmatch(r"checkpoint-\d+", folder.name) is not None


def checkpoint_step(folder: Path) -> int:
    """The N of a folder checkpoint-N: how many optimiser steps it has behind it."""
    return int(folder.name.removeprefix("checkpoint-"))


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints in the folder of a run, the oldest first."""
    return sorted(filter(is_checkpoint, output_dir.glob("checkpoint-*")), key=checkpoint_step)


def flat_figures(figures: Figures, separator: str = "/") -> dict[str, float]:
    """Figures without groups: the name of a group is put before the names of its numbers."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}{separator}{part}": number for part, number in value.items()}
        else:
            flat[name] = value
    return flat


def json_figures(figures: Figures) -> dict[str, Any]:
    """Figures as JSON can hold them: None in place of numbers that are not finite."""
    known: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            known[name] = json_figures(value)
        else:
            known[name] = value if math.isfinite(value) else None
    return known


def figures_text(heading: str, figures: Figures) -> str:
    """Figures to be read by people, with four digits; each group on a line of its own.

    >>> figures_text("step 500:", {"psnr": 38.21877, "mae_hu": float("nan")})
    'step 500: psnr 38.22, mae_hu not measured'
    """
    numbers, lines = [], []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            lines.append(figures_text(f"{name}:", value))
        else:
            numbers.append(f"{name} {value:.4g}" if math.isfinite(value) else f"{name} not measured")
    return "\n  ".join([f"{heading} {', '.join(numbers)}".rstrip(), *lines])
