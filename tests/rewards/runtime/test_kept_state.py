"""What rewards remember between calls: in checkpoints, apart from evaluations, or said to be lost."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from async_copy_generator import AsyncCopyGenerator
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from runs import make_data, make_module, make_trainer, weights, write_prompts

from grpo_lightning.rewards import BaseRewardFunction, RewardRunner, resolve_rewards
from grpo_lightning.rewards.base import RewardContractError

AHEAD: dict[str, Any] = {"async_rollouts": 1, "max_sampler_mismatch": None}


class Forgetful:
    """Pays less from call to call, and cannot tell how many there were."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        self.calls += 1
        return [sum(token % 2 == 0 for token in ids) / self.calls for ids in completion_ids]


class Remembering(Forgetful):
    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


@dataclass
class Novelty(BaseRewardFunction):
    """1 over how often a completion was seen; what it gives is what it goes on writing to."""

    name: str = "novelty"
    weight: float = 1.0
    seen: dict[int, int] = field(default_factory=dict)

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        for ids in completion_ids:
            self.seen[ids[0]] = self.seen.get(ids[0], 0) + 1
        return [1 / self.seen[ids[0]] for ids in completion_ids]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_resumed_run_goes_on_with_what_its_rewards_remember(evaluates, tiny_model_dir, tmp_path):
    def run(steps: int, evaluated: bool = False, ckpt: Path | None = None) -> tuple[Any, Path]:
        module = make_module(tiny_model_dir, rewards=[Remembering(), Novelty()])
        own = {"val_check_interval": 1, "check_val_every_n_epoch": None} if evaluated else {}
        trainer = make_trainer(tmp_path, steps, **own)
        held_out = {"eval_dataset": str(tmp_path / "train.jsonl")} if evaluated else {}
        trainer.fit(module, datamodule=make_data(tmp_path, **held_out), ckpt_path=ckpt)
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
        return module, tmp_path / "saved.ckpt"

    whole, _ = run(4)
    _, saved = run(2, evaluates)
    resumed, _ = run(4, evaluates, saved)
    counts = [module.source.reward_runner.kept_state.state_dict() for module in (whole, resumed)]
    assert counts[0] == counts[1] and counts[0]["Remembering"] == {"calls": 4}
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


class Seen(Remembering):
    """As long as the calls that it has seen: false at the start."""

    def __len__(self) -> int:
        return self.calls


def runner(*rewards: Any) -> RewardRunner:
    return RewardRunner(resolve_rewards(list(rewards)))


def call(of: RewardRunner, times: int = 1) -> None:
    for _ in range(times):
        of.score(["p", "p"], ["a", "b"], [[1], [2]])


def test_ranks_get_back_their_own_and_a_state_is_a_copy():
    one = runner(Novelty())
    call(one)
    (saved,) = one.kept_state.of_all_ranks(1)
    call(one)
    assert saved == {"novelty": {"seen": {1: 1, 2: 1}}}
    other = runner(Novelty())
    other.kept_state.restore([saved])
    call(other)
    assert other.rewards[0].seen == {1: 2, 2: 2} and saved["novelty"]["seen"] == {1: 1, 2: 1}


def test_what_no_checkpoint_holds_is_said_once_and_only_where_it_has_changed(caplog):
    with caplog.at_level(logging.WARNING):
        lost = runner(
            Forgetful(), "accuracy,format,repetition", lambda completions, **columns: [0.0] * len(completions)
        )
        assert lost.kept_state.of_all_ranks(1) == [] and not caplog.records
        lost.score(["p"], ["a"], [[1]], {"ground_truth": ["a"]})
        lost.kept_state.of_all_ranks(1)
        lost.kept_state.of_all_ranks(1)
    (said,) = [record.getMessage() for record in caplog.records if "checkpoint" in record.getMessage()]
    assert said.startswith("The reward 'Forgetful' remembers from call to call (calls)")


def test_a_checkpoint_without_its_state_is_said(caplog):
    later = runner(Remembering())
    with caplog.at_level(logging.WARNING):
        later.kept_state.restore([])
    assert "no state of the reward 'Remembering'" in caplog.text


def test_a_state_that_a_checkpoint_cannot_hold_is_refused_with_the_rewards_name():
    class Counting(Remembering):
        def state_dict(self) -> dict[str, Any]:
            return {"calls": Counter("abc"), "of": object()}

    with pytest.raises(
        RewardContractError, match=r"^Reward 'Counting': its state_dict\(\) gives what a checkpoint cannot"
    ):
        runner(Counting()).kept_state.of_all_ranks(1)


def test_state_that_would_stay_in_another_process_is_refused():
    reward = Novelty()
    reward.isolation = "process"
    with pytest.raises(ValueError, match=r"^Reward 'novelty' has state_dict, and isolation='process'"):
        runner(reward)


def test_a_reward_that_is_false_keeps_its_state_and_is_evaluated(tiny_model_dir):
    empty = Seen()
    assert not empty
    kept = runner(empty).kept_state
    assert kept.state_dict() == {"Seen": {"calls": 0}}
    kept.restore([{"Seen": {"calls": 3}}])
    assert empty.calls == 3
    assert make_module(tiny_model_dir, eval_rewards=Seen()).evaluation.reward_runner.names[-1] == "Seen"


class Locked(Remembering):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.counts: list[int] = []

    def __call__(self, completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        with self.lock:
            self.counts.append(self.calls)
            return super().__call__(completions, completion_ids, **columns)


def test_held_out_completions_are_scored_with_what_training_left_and_change_nothing_of_it(
    tiny_model_dir, tmp_path, caplog
):
    trained, reported = Locked(), Remembering()
    module = make_module(tiny_model_dir, rewards=[trained], eval_rewards=[reported])
    trainer = make_trainer(tmp_path, 2, val_check_interval=1, check_val_every_n_epoch=None)
    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)), eval_batch_size=2)
    with caplog.at_level(logging.WARNING):
        trainer.fit(module, datamodule=data)
    assert trained.counts == [0, 1, 1, 1, 2, 2]  # a step, then two held-out batches, twice
    assert (trained.calls, reported.calls) == (2, 4)
    assert "checkpoint has no state" not in caplog.text


def test_what_a_failed_evaluation_changed_is_put_back():
    kept = runner(one := Novelty()).kept_state
    with pytest.raises(ArithmeticError), kept.put_back():
        one([[1]])
        raise ArithmeticError
    assert one.seen == {}


@pytest.mark.parametrize("settings", [{}, AHEAD])
def test_of_a_step_that_fails_a_checkpoint_holds_the_state_from_before_it(settings, tiny_model_dir, tmp_path):
    class Fail(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            loss = pl_module.policy_loss

            def fails(*args: Any) -> Any:
                if pl_module.steps_done == 2:
                    raise ArithmeticError("in step 3")
                return loss(*args)

            pl_module.policy_loss = fails

    def run(ckpt: Path | None = None, **callbacks: Any) -> tuple[Remembering, Any]:
        reward = Remembering()
        generator = {"generator": AsyncCopyGenerator()} if settings else {}
        module = make_module(tiny_model_dir, rewards=[reward], **settings, **generator)
        make_trainer(tmp_path, 4, **callbacks).fit(module, datamodule=make_data(tmp_path), ckpt_path=ckpt)
        return reward, weights(module)

    whole, expected = run()
    failing = [Fail(), OnExceptionCheckpoint(str(tmp_path), "failed")]
    with pytest.raises(ArithmeticError, match="in step 3"):
        run(callbacks=failing, enable_checkpointing=True)
    resumed, found = run(tmp_path / "failed.ckpt")
    assert whole.calls == resumed.calls == 4
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def saved_at(folder: Path, step: int) -> dict[str, Any]:
    return torch.load(folder / f"step={step}.ckpt", weights_only=True)["sources"]


def test_the_state_is_of_before_the_batch_that_is_sampled_ahead(tiny_model_dir, tmp_path):
    def run(steps: int, ckpt: Path | None = None, **callbacks: Any) -> tuple[Remembering, Any]:
        reward = Remembering()
        module = make_module(tiny_model_dir, rewards=[reward], generator=AsyncCopyGenerator(), **AHEAD)
        trainer = make_trainer(tmp_path, steps, **callbacks)
        trainer.fit(module, datamodule=make_data(tmp_path), ckpt_path=ckpt)
        return reward, weights(module)

    each = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, expected = run(4, callbacks=[each], enable_checkpointing=True)
    assert [saved_at(tmp_path, step)["rollouts"]["rewards"] for step in (1, 2, 3)] == [
        [{"Remembering": {"calls": calls}}] for calls in (1, 2, 3)
    ]
    resumed, found = run(4, tmp_path / "step=2.ckpt")
    assert whole.calls == resumed.calls == 4
    assert all(torch.equal(expected[name], found[name]) for name in expected)
