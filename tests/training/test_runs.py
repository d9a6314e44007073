"""A training run: checkpoints, resuming, averaged weights, draws and log."""

import argparse
import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from lsdm_diffusers.training.run_arguments import RunSettings, add_optimisation_arguments, add_run_arguments
from lsdm_diffusers.training.runs import TrainingRun, figures_text, flat_figures, json_figures


@pytest.fixture
def start_run(monkeypatch, tmp_path):
    """Start a run of a linear model in the folder tmp_path, as a new process would."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def start(**settings):
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        run = TrainingRun(RunSettings(**{"output_dir": tmp_path, "max_train_steps": 6, **settings}))
        model = torch.nn.Linear(2, 1)
        run.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: 1 / (step + 1))
        run.prepared, run.optimizer = run.accelerator.prepare(model, run.optimizer)
        run.start(model, [schedule], "test", {})
        return run

    yield start
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def train(run, steps=6):
    """Train to a step and return the losses of the optimiser steps."""
    losses = []
    while run.step < steps:
        batch = torch.randn(4, 2, generator=run.noise_generator())
        with run.accelerator.accumulate(run.prepared):
            loss = run.prepared(batch).square().mean()
            run.check_finite(loss=loss)
            run.accelerator.backward(loss)
            run.optimizer.step()
            run.optimizer.zero_grad()
        if run.advance({"loss": loss}):
            losses.append(loss.item())
    return losses


def checkpoint_names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_continues_as_if_uninterrupted(start_run, tmp_path, accumulation):
    settings = {"checkpointing_steps": 4, "gradient_accumulation_steps": accumulation, "ema_max_decay": 0.5}
    run = start_run(**settings)
    losses, weights = train(run), run.model.weight.detach().clone()
    averaged, rate = run.ema.shadow_params[0].clone(), run.schedules[0].get_last_lr()
    resumed = start_run(resume_from_checkpoint="latest", **settings)
    assert resumed.step == 4 and resumed.batch_number == 4 * accumulation
    assert train(resumed) == losses[4:]
    assert torch.equal(resumed.model.weight, weights) and torch.equal(resumed.ema.shadow_params[0], averaged)
    assert resumed.schedules[0].get_last_lr() == rate


def test_the_folder_of_another_run_is_refused(start_run, tmp_path):
    train(start_run(checkpointing_steps=2))
    with pytest.raises(ValueError, match="has checkpoints of another run; --resume_from_checkpoint latest continues"):
        start_run()


def test_resuming_from_a_named_checkpoint(start_run, tmp_path):
    train(start_run(checkpointing_steps=2, checkpoints_total_limit=0))
    assert start_run(resume_from_checkpoint=str(tmp_path / "checkpoint-2")).step == 2
    for folder in ("checkpoint-3", "pipeline"):
        with pytest.raises(ValueError, match='but "latest" or an existing folder checkpoint-N is needed'):
            start_run(resume_from_checkpoint=str(tmp_path / folder))


def test_latest_starts_a_new_run_in_an_empty_folder(start_run):
    assert start_run(resume_from_checkpoint="latest").step == 0


@pytest.mark.parametrize(
    ("limit", "kept"), [(2, ["checkpoint-4", "checkpoint-6"]), (0, ["checkpoint-2", "checkpoint-4", "checkpoint-6"])]
)
def test_only_the_newest_checkpoints_are_kept(start_run, tmp_path, limit, kept):
    train(start_run(checkpointing_steps=2, checkpoints_total_limit=limit))
    assert checkpoint_names(tmp_path) == kept


def test_checkpoints_are_ordered_by_step_not_by_name(start_run, tmp_path):
    train(start_run(checkpointing_steps=1, max_train_steps=11), steps=11)
    assert checkpoint_names(tmp_path) == ["checkpoint-10", "checkpoint-11"]


def test_an_interrupted_checkpoint_is_not_resumed_from(start_run, tmp_path, monkeypatch):
    run = start_run(checkpointing_steps=2)
    train(run, steps=2)

    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.accelerator, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(run, steps=4)
    assert start_run(resume_from_checkpoint="latest").step == 2


def test_averaged_weights_are_swapped_in_and_out(start_run):
    run = start_run(ema_max_decay=0.9)
    train(run)
    weights, averaged = run.model.weight.detach().clone(), run.ema.shadow_params[0].clone()
    assert not torch.equal(weights, averaged)
    with pytest.raises(KeyError), run.averaged_weights():
        assert torch.equal(run.model.weight, averaged) and not run.model.training
        raise KeyError
    assert torch.equal(run.model.weight, weights) and run.model.training


def test_without_ema_the_average_is_the_weights(start_run):
    run = start_run(use_ema=False)
    train(run)
    assert torch.equal(run.ema.shadow_params[0], run.model.weight)


def test_noise_depends_on_seed_and_batch_only(start_run):
    run = start_run(seed=1)
    first = torch.randn(3, generator=run.noise_generator())
    assert torch.equal(first, torch.randn(3, generator=run.noise_generator()))
    train(run, steps=1)
    assert not torch.equal(first, torch.randn(3, generator=run.noise_generator()))
    assert not torch.equal(first, torch.randn(3, generator=start_run(seed=2).noise_generator()))


def test_a_loss_that_is_not_finite_stops_the_run(start_run):
    run = start_run()
    run.check_finite(loss=torch.tensor(1.0))
    with pytest.raises(
        RuntimeError, match="The loss is 1.0 and the discriminator loss is nan at step 0; the last good"
    ):
        run.check_finite(loss=torch.tensor(1.0), discriminator_loss=torch.tensor(math.nan))


def test_validation_is_due_every_so_many_steps_and_at_the_end(start_run):
    run, due = start_run(validation_steps=4), []
    for step in range(1, 7):
        train(run, steps=step)
        if run.validation_is_due:
            due.append(step)
    assert due == [4, 6]


def test_mean_losses_of_the_last_steps(start_run):
    run = start_run()
    assert run.mean_losses() == {}
    losses = train(run)
    assert run.mean_losses()["loss"] == pytest.approx(sum(losses) / 6)
    assert run.mean_losses(2)["loss"] == pytest.approx(sum(losses[-2:]) / 2)


def test_figures_are_logged_as_json_and_printed_to_be_read(start_run, tmp_path, capsys):
    run = start_run()
    run.log({"psnr": 38.21877, "mae_hu": math.nan})
    run.log({"t20": {"auc": 0.8126, "ece": math.nan}, "t50": {"auc": 0.5}})
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["psnr"] == 38.21877 and first["mae_hu"] is None
    assert second["t20"] == {"auc": 0.8126, "ece": None} and second["step"] == 0 and second["seconds"] >= 0
    printed = capsys.readouterr().out
    assert "step 0: psnr 38.22, mae_hu not measured\n" in printed
    assert "step 0:\n  t20: auc 0.8126, ece not measured\n  t50: auc 0.5\n" in printed
    run.write_validation({"psnr": math.inf})
    assert json.loads((tmp_path / "validation.json").read_text()) == {"step": 0, "psnr": None}


def test_figures_in_groups_are_flattened():
    groups = {"t20": {"auc": 0.8}, "loss": 1.0}
    assert flat_figures(groups) == {"t20/auc": 0.8, "loss": 1.0}
    assert json_figures(groups) == groups
    assert figures_text("step 1:", groups) == "step 1: loss 1\n  t20: auc 0.8"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_steps": 0}, "--validation_steps is 0, but at least 1 is needed"),
        ({"checkpointing_steps": -1}, "--checkpointing_steps is -1, but at least 1 is needed"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is 0, but at least 1 is needed"),
        ({"checkpoints_total_limit": -1}, "--checkpoints_total_limit is -1, but 0 .* is needed"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(output_dir=tmp_path, max_train_steps=1, **settings)


def test_settings_are_picked_out_of_the_flags_with_the_defaults_of_the_script():
    parser = argparse.ArgumentParser()
    add_optimisation_arguments(parser, batch="slices", more_schedules=["one_cycle"], max_train_steps=7, seed=3)
    add_run_arguments(parser, contents="weights", validation_steps=11)
    settings = RunSettings.from_arguments(
        vars(parser.parse_args(["--output_dir", "run", "--lr_scheduler", "one_cycle"]))
    )
    assert (settings.max_train_steps, settings.seed, settings.validation_steps) == (7, 3, 11)
    assert settings.checkpointing_steps == 250 and settings.output_dir.name == "run"
    assert "Default: 7." in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--output_dir", "run", "--lr_scheduler", "piecewise_constant"])


def test_figures_are_printed_for_people():
    figures = {"t20": {"auc_ge3": 0.81234567, "auc_ge4": math.nan}, "t50": {"mae": math.inf}, "psnr": 38.2}
    text = figures_text("step 500:", figures)
    assert text == "step 500: psnr 38.2\n  t20: auc_ge3 0.8123, auc_ge4 not measured\n  t50: mae not measured"
