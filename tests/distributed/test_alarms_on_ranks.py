"""An alarm looks at all ranks together, and stops all of them after the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from runs import make_data, make_module, make_trainer

from grpo_lightning.callbacks import Alarms

PROMPTS_PER_STEP, STOP_AFTER = 6, 2
SOME_END = list("etaoinshrdlu0123456789 ")
"""Stop strings that end some of the random completions, so that not all are cut off."""


def equal_in_the_first_half(completions_ids, ground_truth, **columns):
    """Nothing to learn from on the first rank, and something on the others."""
    shares = [sum(token % 2 for token in ids) / len(ids) for ids in completions_ids]
    is_later = [int(answer) // 2 % PROMPTS_PER_STEP >= PROMPTS_PER_STEP // 2 for answer in ground_truth]
    return [share if later else 0.0 for later, share in zip(is_later, shares, strict=True)]


def all_equal(completions, **columns):
    return [0.5] * len(completions)


REWARDS = {"equal on one rank": equal_in_the_first_half, "equal everywhere": all_equal}


def run(folder: Path, model_dir: Path, ranks: int, reward: str, spoiled: int | None = None) -> dict[str, Any]:
    """Up to five steps; the loss of one rank may be NaN. How far this rank came, and why it stopped."""
    alarms = Alarms(warn_after=1, stop_after=STOP_AFTER, stop_after_not_finite=STOP_AFTER)
    module = make_module(model_dir, rewards=[REWARDS[reward]], stop=SOME_END)
    policy_loss = module.policy_loss
    module.policy_loss = lambda *args: policy_loss(*args) * (float("nan") if module.global_rank == spoiled else 1.0)
    trainer = make_trainer(folder, 5, devices=ranks, strategy="ddp" if ranks > 1 else "auto", callbacks=[alarms])
    data = make_data(folder / "data", batch_size=PROMPTS_PER_STEP // ranks, shuffle=False)
    reason = None
    try:
        trainer.fit(module, datamodule=data)
    except RuntimeError as error:
        reason = str(error)
    return {"steps": module.steps_done, "reason": reason, "in_a_row": alarms.in_a_row}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


def test_ranks_without_a_gradient_of_their_own_are_no_alarm(folder, tiny_model_dir):
    (alone,) = run_ranks(1, run, folder, tiny_model_dir, 1, "equal on one rank")
    assert alone["reason"] is None and alone["steps"] == 5
    assert run_ranks(2, run, folder, tiny_model_dir, 2, "equal on one rank") == [alone, alone]


def test_an_alarm_stops_every_rank_after_the_same_step(folder, tiny_model_dir):
    (alone,) = run_ranks(1, run, folder, tiny_model_dir, 1, "equal everywhere")
    assert alone["steps"] == STOP_AFTER
    assert alone["reason"].startswith("Stopped by alarm zero_gradient: in the last 2 steps")
    assert run_ranks(2, run, folder, tiny_model_dir, 2, "equal everywhere") == [alone, alone]


def test_a_gradient_that_is_nan_on_one_rank_stops_every_rank(folder, tiny_model_dir):
    first, second = run_ranks(2, run, folder, tiny_model_dir, 2, "equal on one rank", 1)
    assert first == second
    assert first["steps"] == STOP_AFTER
    assert first["reason"].startswith("Stopped by alarm not_finite: in the last 2 steps")
