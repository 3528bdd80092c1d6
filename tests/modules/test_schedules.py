"""Schedules: transformers' own rates, and a length that the run tells."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from runs import make_data, make_module, make_trainer
from transformers import get_linear_schedule_with_warmup, get_scheduler

from grpo_lightning.modules.schedules import RunSchedule, TransformersSchedule, WarmupSchedule
from grpo_lightning.training.optimization import make_scheduler


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)


def rates(schedule: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("linear", None),
        ("cosine", None),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_with_min_lr", {"min_lr": 0.2}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("polynomial", {"power": 2.0}),
        ("constant_with_warmup", None),
        ("inverse_sqrt", None),
        ("warmup_stable_decay", {"num_decay_steps": 3}),
    ],
)
def test_rates_are_those_of_transformers(name, arguments):
    theirs = rates(get_scheduler(name, sgd(), 3, 12, arguments), 12)
    assert rates(TransformersSchedule(sgd(), name, 3, 12, arguments), 12) == theirs
    told = TransformersSchedule(sgd(), name, 0.25, arguments=arguments)  # a quarter of 12
    told.set_total_steps(12)
    assert rates(told, 12) == theirs


def test_a_schedule_that_follows_a_metric_is_refused():
    with pytest.raises(ValueError, match="follows a metric"):
        TransformersSchedule(sgd(), "reduce_lr_on_plateau", total_steps=4)


def test_a_length_of_the_config_wins_over_that_of_the_run():
    schedule = WarmupSchedule(sgd(), total_steps=2, shape="linear")
    schedule.set_total_steps(100)
    assert rates(schedule, 3) == [0.5, 0.25, 0.0]


def test_a_schedule_that_nobody_tells_the_length_stops_at_its_first_step():
    schedule = WarmupSchedule(sgd(), shape="cosine")
    schedule.optimizer.step()
    with pytest.raises(ValueError, match="length of this schedule is not known"):
        schedule.step()
    with pytest.raises(ValueError, match="only the clock ends"):
        schedule.set_total_steps(None)


def test_a_warm_up_as_a_share_is_rounded_up():
    schedule = WarmupSchedule(sgd(), warmup_steps=0.3)
    schedule.set_total_steps(7)  # 2.1 steps
    assert rates(schedule, 4) == pytest.approx([0.5 / 3, 1.0 / 3, 0.5, 0.5])


def scheduled(schedules: list[RunSchedule]) -> Any:
    def make(optimizer: torch.optim.Optimizer) -> RunSchedule:
        schedules.append(WarmupSchedule(optimizer, shape="linear"))
        return schedules[-1]

    return make


class Rates(L.Callback):
    """The rate after each GRPO step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


def run(model_dir: Path, folder: Path, ckpt_path: Path | None = None, stop: int = -1, **trainer: Any) -> list[float]:
    """12 prompts, 3 a step: 4 GRPO steps an epoch of 2 optimizer steps each; 3 epochs are 24 optimizer steps."""
    watch = Rates()
    settings = {"max_epochs": 3, "callbacks": [watch], **trainer}
    made = make_trainer(folder, -1, **settings)
    module = make_module(model_dir, lr_scheduler=scheduled([]), num_iterations=2)

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == stop:
                trainer.save_checkpoint(folder / "stop.ckpt")
                trainer.should_stop = True

    made.callbacks.append(Stop())  # type: ignore[attr-defined]
    made.fit(module, datamodule=make_data(folder), ckpt_path=ckpt_path)
    return watch.found


def test_a_decay_takes_its_length_from_epochs_and_data(tiny_model_dir: Path, tmp_path: Path):
    found = run(tiny_model_dir, tmp_path)
    assert found == pytest.approx([0.1 * (1 - 2 * step / 24) for step in range(1, 13)], abs=1e-12)
    short = run(tiny_model_dir, tmp_path, limit_train_batches=2, max_epochs=2)  # 8 optimizer steps
    assert short == pytest.approx([0.075, 0.05, 0.025, 0.0])


def test_a_resumed_run_goes_on_with_its_rates_and_its_place_in_the_data(tiny_model_dir: Path, tmp_path: Path):
    whole = run(tiny_model_dir, tmp_path)
    first = run(tiny_model_dir, tmp_path, stop=12)  # in the middle of the second epoch
    rest = run(tiny_model_dir, tmp_path, ckpt_path=tmp_path / "stop.ckpt")
    assert first + rest == pytest.approx(whole, abs=1e-12)


def test_a_resumed_run_follows_a_longer_plan(tiny_model_dir: Path, tmp_path: Path):
    run(tiny_model_dir, tmp_path, stop=12)
    rest = run(tiny_model_dir, tmp_path, ckpt_path=tmp_path / "stop.ckpt", max_epochs=6)  # 48 optimizer steps
    assert rest[0] == pytest.approx(0.1 * (1 - 14 / 48))


def test_a_function_of_transformers_has_its_length_from_the_run(tiny_model_dir, tmp_path):
    linear = partial(get_linear_schedule_with_warmup, num_warmup_steps=0)
    module = make_module(tiny_model_dir, lr_scheduler=linear)
    trainer = make_trainer(tmp_path, 4, limit_train_batches=1, max_epochs=4)
    trainer.fit(module, datamodule=make_data(tmp_path))
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert [schedule.lr_lambdas[0](step) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert schedule.last_epoch == 4


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (
            get_linear_schedule_with_warmup,
            "model.lr_scheduler needs num_warmup_steps besides the optimizer. Give it in",
        ),
        (
            partial(get_linear_schedule_with_warmup, num_warmup_steps=1),
            "num_training_steps .*only the clock ends this run",
        ),
        (torch.optim.lr_scheduler.CosineAnnealingLR, "model.lr_scheduler needs T_max besides the optimizer"),
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "waits for a validation metric"),
    ],
)
def test_a_schedule_that_cannot_be_made_says_what_it_needs(factory, said):
    steps = None if isinstance(factory, partial) else 8
    with pytest.raises(ValueError, match=said):
        make_scheduler(factory, sgd(), lambda: steps)


def test_an_optimizer_or_schedule_that_is_made_already_is_refused_with_what_to_write(tiny_model_dir):
    with pytest.raises(ValueError, match=r"model.optimizer is a SGD .* optimizer=lambda params: SGD\(params, \.\.\.\)"):
        make_module(tiny_model_dir, optimizer=sgd())
    schedule = torch.optim.lr_scheduler.ConstantLR(sgd())
    with pytest.raises(ValueError, match=r"lr_scheduler=lambda optimizer: ConstantLR\(optimizer, \.\.\.\)"):
        make_module(tiny_model_dir, lr_scheduler=schedule)
