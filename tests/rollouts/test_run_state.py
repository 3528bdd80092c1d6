"""Tests of what rewards are told about the run: the attributes of transformers' TrainerState."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import fit, make_data, make_module, make_trainer, share_of_digits, write_prompts

from grpo_lightning.rewards import RewardState
from grpo_lightning.rollouts.run_state import KEPT, LogHistory, length_of_run


class Recorder:
    """A reward that keeps the states that it was given."""

    def __init__(self) -> None:
        self.states: list[RewardState] = []

    def __call__(self, completions: Any, trainer_state: Any, **columns: Any) -> list[float]:
        self.states.append(trainer_state)
        return share_of_digits(completions)


def test_an_epoch_run_knows_its_length_and_the_fraction_of_its_epoch(tiny_model_dir: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    # 12 prompts, 3 a step, 2 optimizer steps each: 4 steps and 8 optimizer steps an epoch.
    fit(tiny_model_dir, tmp_path, -1, trainer={"max_epochs": 2}, rewards=[recorder], num_minibatches=2)
    states = recorder.states
    assert [state.global_step for state in states] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [state.epoch for state in states] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert {(state.max_steps, state.num_train_epochs) for state in states} == {(16, 2)}
    assert all(state.is_world_process_zero and state.is_local_process_zero for state in states)


def test_the_history_has_the_metrics_of_each_step_before(tiny_model_dir: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    module = fit(tiny_model_dir, tmp_path, 3, rewards=[recorder])
    first, second, third = recorder.states
    assert first.log_history == []
    assert [entry["step"] for entry in third.log_history] == [1, 2]
    assert [entry["epoch"] for entry in third.log_history] == [0.25, 0.5]
    assert second.log_history == third.log_history[:1]
    assert all(0 <= entry["reward"] <= 1 for entry in third.log_history)
    assert set(module.step_metrics) <= set(third.log_history[-1])


def test_a_resumed_run_tells_its_rewards_the_same(tiny_model_dir: Path, tmp_path: Path) -> None:
    whole, before, after = Recorder(), Recorder(), Recorder()

    def run(recorder: Recorder, checkpoint: Path | None = None, **trainer: Any) -> None:
        module = make_module(tiny_model_dir, rewards=[recorder])
        fitted = make_trainer(tmp_path, 3, **trainer)
        fitted.fit(module, datamodule=make_data(tmp_path), ckpt_path=checkpoint, weights_only=False)

    run(whole)
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    run(before, enable_checkpointing=True, callbacks=[saver])
    run(after, tmp_path / "step=2.ckpt")

    def told(state: RewardState) -> Any:
        history = [{name: entry[name] for name in ("reward", "step", "epoch")} for entry in state.log_history]
        return state.global_step, state.max_steps, state.epoch, history

    assert told(after.states[0]) == told(whole.states[2]) == told(before.states[2])
    assert len(after.states) == 1


def test_a_resumed_run_tells_the_same_of_evaluations_and_of_metrics_that_a_step_lacks(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """``rewards/rare/mean`` is known of the first step alone, ``val/...`` of the step that was evaluated."""
    whole, before, after = Recorder(), Recorder(), Recorder()

    def rare(completions: Any, trainer_state: Any, **columns: Any) -> list[float | None]:
        return [1.0 if trainer_state.global_step == 0 else None for _ in completions]

    def run(recorder: Recorder, checkpoint: Path | None = None, **trainer: Any) -> None:
        module = make_module(tiny_model_dir, rewards=[recorder, rare], eval_rewards=[share_of_digits])
        data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 2)))
        fitted = make_trainer(tmp_path, 4, val_check_interval=2, **trainer)
        fitted.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)

    run(whole)
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    run(before, enable_checkpointing=True, callbacks=[saver])
    run(after, tmp_path / "step=3.ckpt")

    def told(recorder: Recorder) -> list[dict[str, float]]:
        state = next(state for state in recorder.states if state.global_step == 3)
        timed = ("time", "seconds", "tokens_per_second")
        return [
            {name: value for name, value in entry.items() if not any(word in name for word in timed)}
            for entry in state.log_history
        ]

    history = told(whole)
    assert told(after) == told(before) == history
    assert ["rewards/rare/mean" in entry for entry in history] == [True, False, False]
    assert ["val/reward" in entry for entry in history] == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8, -1, 2), (16, 2)),
        ((8, 12, -1), (12, 2)),  # the second epoch in part
        ((8, 100, 2), (16, 2)),  # whichever end comes first
        ((math.inf, 12, -1), (12, 0)),
        ((math.inf, -1, 3), (-1, 0)),
        ((8, -1, -1), (-1, 0)),
        ((0, 5, 3), (5, 3)),
    ],
)
def test_the_length_of_a_run_follows_from_steps_and_epochs(arguments: Any, expected: Any) -> None:
    assert length_of_run(*arguments) == expected


def test_the_history_is_bounded() -> None:
    history = LogHistory()
    for step in range(1, KEPT + 6):
        history.note(step, step / 4, {"reward": 1.0})
        history.note(step, step / 4, {"reward": 2.0})  # of a step whose updates were skipped
    assert {entry["reward"] for entry in history.entries} == {1.0}
    assert [history.entries[0]["step"], history.entries[-1]["step"], len(history.entries)] == [6, KEPT + 5, KEPT]
