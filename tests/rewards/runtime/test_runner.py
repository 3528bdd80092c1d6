"""Tests of scoring a batch: values, failures, contract, overlap."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from grpo_lightning.rewards import (
    AccuracyReward,
    BaseRewardFunction,
    RewardContractError,
    RewardFailedError,
    RewardRunner,
    RewardState,
    RewardTable,
    resolve_rewards,
)
from grpo_lightning.rewards.runtime.call_rows import CallRows
from grpo_lightning.rewards.runtime.outcome import Outcome
from grpo_lightning.rewards.runtime.reward_calls import RewardCalls
from grpo_lightning.rewards.runtime.settings import RewardRuntime
from grpo_lightning.rewards.runtime.step_scoring import StepScoring

nan = float("nan")


@pytest.fixture
def score() -> Iterator[Callable[..., RewardTable]]:
    runners: list[RewardRunner] = []

    def run(
        rewards: Any, completions: list[Any], weights: Any = None, repeat_by_row: bool = False, **kwargs: Any
    ) -> RewardTable:
        runner = RewardRunner(resolve_rewards(rewards, weights), repeat_by_row=repeat_by_row)
        runners.append(runner)
        return runner.score(["p"] * len(completions), completions, [[1]] * len(completions), **kwargs)

    yield run
    for runner in runners:
        runner.close()


def returning(value: Any) -> Callable[..., Any]:
    def reward(completions: Any) -> Any:
        return value

    return reward


def test_a_table_holds_one_row_per_completion_and_one_column_per_reward(score: Callable[..., RewardTable]) -> None:
    def length(completions: list[str]) -> list[int]:
        return [len(text) for text in completions]

    async def has_a(completions: list[str]) -> list[bool | None]:
        return [("a" in text) if text else None for text in completions]

    def never(prompts: Any) -> None:
        return None

    table = score([length, has_a, never], ["aa", "", "bcd"], weights=[1, 0.5, 2])
    expected = torch.tensor([[2, 1, nan], [0, nan, nan], [3, 0, nan]], dtype=torch.float64)
    torch.testing.assert_close(table.values, expected, equal_nan=True)
    assert table.names == ("length", "has_a", "never")
    assert table.weights.tolist() == [1.0, 0.5, 2.0]
    torch.testing.assert_close(table.column("length"), torch.tensor([2.0, 0.0, 3.0], dtype=torch.float64))
    of_each = ("time/rewards/{}", "time/rewards/{}/max", "rewards/{}/errors", "rewards/{}/timeouts")
    expected_names = {metric.format(name) for name in table.names for metric in of_each}
    assert set(table.metrics) == expected_names | {"time/rewards/wait"}


@pytest.mark.parametrize(
    "values",
    [
        [True, 0],
        (1, 0.0),
        [np.float32(1), np.int64(0)],
        [torch.tensor(1.0), torch.tensor(False)],
        [np.bool_(True), np.array(0.0)],
        np.array([1.0, 0.0]),
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_numbers_of_every_kind_are_taken(score: Callable[..., RewardTable], values: Any) -> None:
    assert score(returning(values), ["a", "b"]).values.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "'reward' returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "'reward' returned 3 values for 2 completions"),
        ([float("inf"), 1.0], "'reward' returned inf for completion 0"),
        ([1.0, -1e308], "'reward' returned -1e.308 for completion 1, whose square no float holds"),
        ([1.0, "1.0"], r"'reward' returned '1.0' \(str\) for completion 1"),
        ([{"a": 1.0}, 2.0], r"'reward' returned {'a': 1.0} \(dict\) for completion 0"),
        ("ab", "'reward' returned a str, expected a list"),
        (1.0, "'reward' returned a float.*Wrap the value in a list"),
        ({"a": 1.0, "b": 2.0}, "'reward' returned a dict"),
        (np.ones((2, 2)), r"'reward' returned an array of shape \(2, 2\)"),
        ([1j, 1.0], r"'reward' returned 1j \(complex\) for completion 0"),
        ({1.0, 2.0}, "'reward' returned a set"),
    ],
)
def test_a_malformed_answer_is_an_error_that_names_the_reward(
    score: Callable[..., RewardTable], value: Any, message: str
) -> None:
    with pytest.raises(RewardContractError, match=message):
        score(["format", returning(value)], ["a", "b"])


def test_a_step_that_is_given_up_leaves_no_complaints_of_asyncio_behind(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RewardCalls):
        async def __call__(self, reward: BaseRewardFunction, rows: CallRows) -> Outcome:
            raise RewardContractError("it returned a str")

    async def nothing() -> None:
        pass

    calls = Broken(resolve_rewards(["format"]), RewardRuntime(step_time_limit=60.0))
    given_up = StepScoring(calls, [[[0]]], CallRows.to_come(["p"], [0], {}, RewardState()))
    given_up.add(0, "a", [1])
    calls.loop.start(nothing()).result(timeout=60)  # what was started before has ended: calls run in turn
    del given_up
    calls.close()
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_row_that_raises_is_none_counted_and_shown_once(
    score: Callable[..., RewardTable], caplog: pytest.LogCaptureFixture
) -> None:
    def picky(completions: list[str], log_metric: Any, log_extra: Any) -> list[float]:
        log_metric("calls", 1.0)
        log_extra("upper", [text.upper() for text in completions])
        return [1.0 / len(text) for text in completions]

    with caplog.at_level(logging.WARNING):
        table = score([picky, "format"], ["a", "", "bb", "", "c"], repeat_by_row=True)
    assert table.column("picky").isnan().tolist() == [False, True, False, True, False]
    assert table.column("picky")[[0, 2, 4]].tolist() == [1.0, 0.5, 1.0]
    assert table.column("format").tolist() == [0.0] * 5
    assert table.metrics["rewards/picky/errors"] == 2.0 and table.metrics["rewards/format/errors"] == 0.0
    assert table.extra["upper"] == ["A", None, "BB", None, "C"]
    assert table.metrics["calls"] == 1.0
    shown = [record.getMessage() for record in caplog.records if "picky" in record.getMessage()]
    assert len(shown) == 1
    assert "failed on 2 of 5" in shown[0] and "completion 1" in shown[0] and "ZeroDivisionError" in shown[0]


def test_a_reward_that_never_worked_stops_the_run_with_its_first_traceback(score: Callable[..., RewardTable]) -> None:
    def broken(completions: Any) -> list[float]:
        raise KeyError("the cause")

    async def broken_too(completions: Any) -> list[float]:
        raise KeyError("the other cause")

    with pytest.raises(RewardFailedError, match=r"'broken' failed on 2 of the last 2(.|\n)*KeyError: 'the cause'"):
        score(["format", broken], ["a", "b"], repeat_by_row=True)
    with pytest.raises(RewardFailedError, match=r"(?s)'broken_too'.*the other cause"):
        score(["format", broken_too], ["a"])


def test_a_reward_that_breaks_down_later_stops_the_run_once_it_fails_too_often() -> None:
    fail = False

    def fragile(completions: list[str]) -> list[float]:
        if fail:
            raise ConnectionError("server gone")
        return [0.0] * len(completions)

    runner = RewardRunner(resolve_rewards([fragile, "format"]), max_error_share=0.5, repeat_by_row=True)
    batch = (["p"] * 32, ["c"] * 32, [[1]] * 32)
    runner.score(*batch)
    fail = True
    assert runner.score(*batch).metrics["rewards/fragile/errors"] == 32.0  # 32 of the last 64: not more than half
    with pytest.raises(RewardFailedError, match=r"failed on 64 of the last 64(.|\n)*server gone"):
        runner.score(*batch)
    runner.close()


def test_a_missing_column_is_no_failure_to_survive(score: Callable[..., RewardTable]) -> None:
    def needs(completions: Any, gold: Any) -> list[float]:
        return [1.0]

    class Needs(BaseRewardFunction):
        def __call__(self, prompts: Any, completions: Any, gold: Any, **columns: Any) -> list[float | None]:
            return [1.0]

    with pytest.raises(RewardContractError, match="'needs' needs the column gold, but the data has answer"):
        score(needs, ["a"], columns={"answer": ["x"]})
    with pytest.raises(RewardContractError, match="'Needs' needs the column gold, but the data has answer"):
        score(Needs(), ["a"], columns={"answer": ["x"]})
    with pytest.raises(RewardContractError, match=r"'accuracy' finds no reference.*the data has uid\."):
        score("accuracy", ["a"], columns={"uid": [1]})


def test_rewards_see_prompt_completion_columns_state_and_nothing_else(score: Callable[..., RewardTable]) -> None:
    seen: dict[str, Any] = {}

    def spy(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0]

    state = RewardState(global_step=3, max_steps=10, epoch=0.5)
    score(spy, ["c"], columns={"answer": ["a"]}, trainer_state=state)
    loggers = {"log_extra", "log_metric"}
    assert {key: value for key, value in seen.items() if key not in loggers} == {
        "prompts": ["p"],
        "completions": ["c"],
        "completion_ids": [[1]],
        "trainer_state": state,
        "answer": ["a"],
    }
    assert seen["trainer_state"].global_step == 3 and seen["trainer_state"].max_steps == 10
    with pytest.raises(AttributeError):
        seen["trainer_state"].global_step = 4


def test_a_reward_that_sorts_its_arguments_disturbs_no_other(score: Callable[..., RewardTable]) -> None:
    def rude(completions: list[str], answer: list[str]) -> list[float]:
        completions.sort()
        answer.clear()
        return [0.0] * len(completions)

    completions = ["b", "a"]
    polite = AccuracyReward(mode="exact")
    tagged = [f"<answer>{text}</answer>" for text in completions]
    table = score([rude, polite, rude, polite], tagged, columns={"answer": ["b", "x"]})
    assert table.values[:, 1].tolist() == table.values[:, 3].tolist() == [1.0, 0.0]
    assert tagged == ["<answer>b</answer>", "<answer>a</answer>"]


def test_metrics_are_averaged_and_clashing_extra_columns_kept_apart(score: Callable[..., RewardTable]) -> None:
    def first(completions: Any, log_metric: Any, log_extra: Any) -> list[float]:
        log_metric("shared", 1.0)
        log_metric("shared", 2.0)
        log_extra("note", ["x"])
        return [0.0]

    def second(completions: Any, log_metric: Any, log_extra: Any) -> list[float]:
        log_metric("shared", 6.0)
        log_extra("note", ["y"])
        return [0.0]

    table = score([first, second], ["a"])
    assert table.metrics["shared"] == 3.0
    assert table.extra == {"note": ["x"], "second/note": ["y"]}


def test_an_extra_column_of_the_wrong_length_is_an_error(score: Callable[..., RewardTable]) -> None:
    def wrong(completions: Any, log_extra: Any) -> list[float]:
        log_extra("note", ["x", "y"])
        return [0.0]

    with pytest.raises(RewardContractError, match="'wrong' logged 2 values as 'note' for 1 completions"):
        score(wrong, ["a"])


def test_async_rewards_overlap_with_each_other_and_with_sync_ones(score: Callable[..., RewardTable]) -> None:
    met = threading.Barrier(3, timeout=60)  # breaks unless all three rewards are inside at the same time

    async def first(completions: Any) -> list[float]:
        await asyncio.to_thread(met.wait)
        return [1.0]

    async def second(completions: Any) -> list[float]:
        await asyncio.to_thread(met.wait)
        return [2.0]

    def third(completions: Any) -> list[float]:
        met.wait()
        return [3.0]

    assert score([first, second, third], ["a"]).values.tolist() == [[1.0, 2.0, 3.0]]


def test_sync_rewards_never_exceed_the_bound_and_the_loop_stays_the_same() -> None:
    inside, most, lock, loops = 0, 0, threading.Lock(), []

    def make(name: str) -> Callable[..., list[float]]:
        def reward(completions: Any) -> list[float]:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.01)
            with lock:
                inside -= 1
            return [0.0]

        reward.__name__ = name
        return reward

    async def loop_of(completions: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [0.0]

    runner = RewardRunner(resolve_rewards([make(f"r{i}") for i in range(6)] + [loop_of]), max_workers=2)
    runner.score(["p"], ["c"], [[1]])
    runner.score(["p"], ["c"], [[1]])
    runner.close()
    assert most == 2
    assert loops[0] is loops[1]  # so that a reward may keep a session open between steps


def test_a_runner_works_inside_a_running_event_loop(score: Callable[..., RewardTable]) -> None:
    async def in_a_notebook() -> list[list[float]]:
        return score("format", ["a"]).values.tolist()

    assert asyncio.run(in_a_notebook()) == [[0.0]]


def test_a_used_runner_can_be_copied_pickled_closed_and_used_again() -> None:
    runner = RewardRunner(resolve_rewards("format,accuracy"))
    call: dict[str, Any] = {"columns": {"answer": ["1/2"]}}
    for _ in range(2):
        assert runner.score(["p"], [r"\boxed{2/4}"], [[1]], **call).values.tolist() == [[0.0, 1.0]]
        for twin in (copy.deepcopy(runner), pickle.loads(pickle.dumps(runner))):
            assert twin.score(["p"], [r"\boxed{2/4}"], [[1]], **call).values.tolist() == [[0.0, 1.0]]
            twin.close()
        runner.close()


def test_a_completion_that_no_reward_applies_to_is_shown(
    score: Callable[..., RewardTable], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        score(returning([None, 1.0]), ["a", "b"], columns={"answer": ["gold of a", "x"]})
    assert "No reward applies to 1 of 2" in caplog.text and "gold of a" in caplog.text


def test_an_empty_batch_gives_an_empty_table_and_calls_nothing(score: Callable[..., RewardTable]) -> None:
    def never(completions: Any) -> list[float]:
        raise AssertionError("called")

    assert score([never, "format"], []).values.shape == (0, 2)


def test_lists_that_do_not_belong_together_are_refused() -> None:
    runner = RewardRunner(resolve_rewards("format"))
    with pytest.raises(RewardContractError, match="There are 2 completions, but 1 prompts, 3 answer"):
        runner.score(["p"], ["a", "b"], [[1], [2]], columns={"answer": [1, 2, 3]})
    with pytest.raises(RewardContractError, match="columns named like reward arguments: completions, log_extra"):
        runner.score(["p"], ["a"], [[1]], columns={"completions": ["x"], "log_extra": [1]})
    with pytest.raises(ValueError, match="each with its own name; got"):
        RewardRunner([AccuracyReward(), AccuracyReward()])
    with pytest.raises(ValueError, match="max_error_share=0"):
        RewardRunner([AccuracyReward()], max_error_share=0)


def test_a_class_gets_the_token_ids_by_either_name_as_a_function_does():
    class ByTRLsName(BaseRewardFunction):
        def __call__(self, completion_ids, **columns):
            assert columns["completions_ids"] == completion_ids
            return [float(ids[0]) for ids in completion_ids]

    table = RewardRunner([ByTRLsName("ids")]).score(["p", "p"], ["a", "b"], [[3], [5]])
    assert table.values.tolist() == [[3.0], [5.0]]
