"""Tests of how rewards are run: when calls start, what they see, what limits them."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.rewards import (
    BaseRewardFunction,
    FormatReward,
    FunctionReward,
    RewardContractError,
    RewardFailedError,
    RewardRunner,
    RewardTable,
    get_reward_function,
    register_reward,
    resolve_rewards,
)
from grpo_lightning.rewards.registry import REWARD_FUNCTIONS
from grpo_lightning.rewards.runtime.call_plan import rows_of_calls

nan = float("nan")
GROUPS = [0, 0, 1, 1, 2, 2]


@pytest.fixture
def runner() -> Iterator[Callable[..., RewardRunner]]:
    made: list[RewardRunner] = []

    def make(rewards: Any, **runtime: Any) -> RewardRunner:
        made.append(RewardRunner(resolve_rewards(rewards), **runtime))
        return made[-1]

    yield make
    for one in made:
        one.close()


def score(one: RewardRunner, completions: list[str], group: list[int] | None = None, **columns: Any) -> RewardTable:
    ids = [[1]] * len(completions)
    return one.score(["p"] * len(completions), completions, ids, columns, group=group or [0] * len(completions))


def wrapped(function: Callable[..., Any], **calling: Any) -> FunctionReward:
    return FunctionReward(name=function.__name__, function=function, **calling)


@pytest.mark.parametrize(
    ("calling", "calls"),
    [
        ({}, [[0, 1, 2, 3, 5]]),
        ({"scope": "group"}, [[0, 1], [2, 3], [5]]),
        ({"scope": "completion"}, [[0], [1], [2], [3], [5]]),
        ({"scope": "completion", "batched": True}, [[0, 1], [2, 3], [5]]),
    ],
)
def test_the_rows_of_each_call_are_fixed_by_the_scope(calling: dict[str, Any], calls: list[list[int]]) -> None:
    assert rows_of_calls(wrapped(print, **calling), [0, 1, 2, 3, 5], GROUPS) == calls
    assert rows_of_calls(wrapped(print, **calling), [], GROUPS) == []


def test_calls_start_when_their_completions_arrive_and_not_when_the_last_one_does(
    runner: Callable[..., RewardRunner],
) -> None:
    started = {name: threading.Event() for name in ("a", "bb", "ccc", "group of 2", "batch of 6")}

    async def alone(completions: list[str]) -> list[float]:
        started[completions[0]].set() if completions[0] in started else None
        return [float(len(completions[0]))]

    def group(completions: list[str]) -> list[float]:
        started[f"group of {len(completions)}"].set()
        return [float(len(completions))] * len(completions)

    def batch(completions: list[str]) -> list[float]:
        started[f"batch of {len(completions)}"].set()
        return [float(len(completions))] * len(completions)

    one = runner([wrapped(alone, scope="completion"), wrapped(group, scope="group"), batch])
    scoring = one.start(["p"] * 6, GROUPS)
    scoring.add(3, "a", [1])
    assert started["a"].wait(60)  # though no group and no batch is complete
    scoring.add(0, "bb", [1])
    assert not started["group of 2"].is_set()
    scoring.add(2, "ccc", [1])
    assert started["group of 2"].wait(60)
    assert not started["batch of 6"].is_set()
    for row in (1, 4, 5):
        scoring.add(row, "dddd", [1])
    table = one.finish(scoring)
    expected = [[2, 2, 6], [4, 2, 6], [3, 2, 6], [1, 2, 6], [4, 2, 6], [4, 2, 6]]
    assert table.values.tolist() == expected


def test_the_table_does_not_depend_on_the_order_of_arrival(runner: Callable[..., RewardRunner]) -> None:
    def noisy(completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        time.sleep(random.random() / 200)
        log_extra("text", completions)
        log_metric("mean", sum(map(len, completions)) / len(completions))
        return [1.0 / len(text) if text != "bad" else 1 / 0 for text in completions]

    one = runner([wrapped(noisy, scope="completion"), "format"])
    texts = ["a", "bb", "bad", "dddd", "e" * 7, "f" * 11]
    seen = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        scoring = one.start(["p"] * 6, GROUPS)
        for row in order:
            scoring.add(row, texts[row], [1])
        table = one.finish(scoring)
        metrics = {name: value for name, value in table.metrics.items() if not name.startswith("time/")}
        seen.append((table.values.nan_to_num(nan=-1.0).tolist(), table.extra, metrics))
    assert seen[0] == seen[1]
    assert seen[0][0][2] == [-1.0, 0.0] and seen[0][1]["text"][5] == "f" * 11


def test_a_hanging_thread_costs_its_own_completion_only(runner: Callable[..., RewardRunner]) -> None:
    release = threading.Event()

    def hangs_on_b(completions: list[str]) -> list[float]:
        if "b" in completions:
            release.wait(60)
        return [1.0] * len(completions)

    one = runner([wrapped(hangs_on_b), "format"], time_limit=0.3, repeat_by_row=True)
    started = time.monotonic()
    table = score(one, ["a", "b", "c"])  # one call with all three runs out of time, then each alone
    assert time.monotonic() - started < 30
    release.set()
    assert table.values[:, 0].isnan().tolist() == [False, True, False]
    assert table.values[[0, 2], 0].tolist() == [1.0, 1.0]
    assert table.metrics["rewards/hangs_on_b/timeouts"] == 2.0
    assert table.metrics["rewards/hangs_on_b/errors"] == 1.0
    assert table.metrics["rewards/format/errors"] == 0.0


def test_a_batch_reward_is_never_called_with_a_part_of_its_batch(
    runner: Callable[..., RewardRunner], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = []

    def share_of_the_best(completions: list[str]) -> list[float]:
        sizes.append(len(completions))
        best = max(int(text) for text in completions)
        return [int(text) / best for text in completions]

    one = runner([share_of_the_best, "format"])
    assert score(one, ["1", "2", "4"]).values[:, 0].tolist() == [0.25, 0.5, 1.0]
    with caplog.at_level(logging.WARNING):
        table = score(one, ["1", "2", "none"])
    assert table.values[:, 0].isnan().all() and sizes == [3, 3]  # alone, each would have earned 1
    assert table.metrics["rewards/share_of_the_best/errors"] == 3.0
    assert "failed on 3 of 3" in caplog.text and "invalid literal" in caplog.text


def test_a_batch_reward_that_keeps_failing_stops_the_run_and_the_way_out_is_named(
    runner: Callable[..., RewardRunner],
) -> None:
    def fails_on_bad(completions: list[str]) -> list[float]:
        return [1.0 / (text != "bad") for text in completions]

    one = runner([fails_on_bad, "format"])
    bad, good = ["a", "bad"] * 32, ["a"] * 64
    for texts in [bad, good, good, bad, bad, good, bad]:
        score(one, texts)  # 4 of 7 batches, and one bad batch is no verdict
    with pytest.raises(RewardFailedError, match=r"failed on 320 of the last 512 .*repeat_by_row: true"):
        score(one, bad)
    with pytest.raises(RewardFailedError, match="failed on 4 of the last 4"):
        never = runner([fails_on_bad, "format"])
        score(never, ["a", "bad"])
        score(never, ["a", "bad"])


def test_stop_iteration_of_a_reward_is_an_error_at_once_with_its_traceback(
    runner: Callable[..., RewardRunner], caplog: pytest.LogCaptureFixture
) -> None:
    def first_digit(completions: list[str]) -> list[float]:
        return [float(next(ch for ch in text if ch.isdigit())) for text in completions]

    async def first_digit_async(completions: list[str]) -> list[float]:
        return first_digit(completions)

    for reward in (first_digit, first_digit_async):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            table = score(
                runner([wrapped(reward, scope="completion"), "format"], time_limit=3600.0), ["a1", "none", "2"]
            )
        torch.testing.assert_close(
            table.values[:, 0], torch.tensor([1.0, nan, 2.0], dtype=torch.float64), equal_nan=True
        )
        assert table.metrics[f"rewards/{reward.__name__}/timeouts"] == 0.0
        assert "if ch.isdigit()" in caplog.text and "StopIteration" in caplog.text and "event_loop" not in caplog.text


def test_a_coroutine_that_hangs_is_cancelled_at_its_own_limit(runner: Callable[..., RewardRunner]) -> None:
    ended = threading.Event()

    async def slow(completions: list[str]) -> list[float]:
        try:
            await asyncio.sleep(60 if completions == ["b"] else 0)
        except asyncio.CancelledError:
            ended.set()
            raise
        return [1.0]

    table = score(runner([wrapped(slow, scope="completion", call_time_limit=0.2)]), ["a", "b"])
    assert table.values[:, 0].isnan().tolist() == [False, True]
    assert ended.wait(60)


def test_the_error_of_a_time_out_names_reward_limit_and_setting(
    runner: Callable[..., RewardRunner], caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(completions: list[str]) -> list[float]:
        await asyncio.sleep(60 if completions == ["b"] else 0)
        return [1.0]

    with caplog.at_level(logging.WARNING):
        score(runner([wrapped(slow, scope="completion")], time_limit=0.2), ["a", "b"])
    assert "Reward 'slow' took more than 0.2 s for one call" in caplog.text
    assert "completion 1" in caplog.text and "model.reward_runtime.time_limit" in caplog.text


@pytest.mark.parametrize("isolation", ["main", "thread"])
def test_a_coroutine_that_a_plain_function_returns_is_cancelled_at_the_limit_of_its_call(
    isolation: str, runner: Callable[..., RewardRunner], caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()

    async def waits(completions: list[str]) -> list[float]:
        try:
            await asyncio.sleep(5 if completions == ["b"] else 0)
        except asyncio.CancelledError:
            ended.set()
            raise
        return [1.0]

    def plain(completions: list[str]) -> Any:
        return waits(completions)

    reward = wrapped(plain, scope="completion", call_time_limit=0.5, isolation=isolation)
    with caplog.at_level(logging.WARNING):
        table = score(runner([reward]), ["a", "b"])
    assert table.values[:, 0].isnan().tolist() == [False, True]
    assert table.metrics["rewards/plain/timeouts"] == 1.0
    assert ended.wait(60)
    assert "Reward 'plain' took more than 0.5 s for one call and was given up. Raise" in caplog.text


def test_a_call_in_the_main_thread_that_took_too_long_counts_as_none_and_is_not_said_to_go_on(
    runner: Callable[..., RewardRunner], caplog: pytest.LogCaptureFixture
) -> None:
    def slow(completions: list[str]) -> list[float]:
        time.sleep(0.6 if completions == ["b"] else 0.0)
        return [1.0]

    one = runner([wrapped(slow, scope="completion", call_time_limit=0.5, isolation="main")])
    with caplog.at_level(logging.WARNING):
        table = score(one, ["a", "b", "c"])
    assert table.values[:, 0].isnan().tolist() == [False, True, False]
    assert table.metrics["rewards/slow/timeouts"] == 1.0
    assert "Reward 'slow' took more than 0.5 s for one call and was given up. Raise model.reward_runtime" in caplog.text
    assert "goes on in the background" not in caplog.text


def test_a_step_waits_no_longer_than_its_limit_in_all(runner: Callable[..., RewardRunner]) -> None:
    async def slow(completions: list[str]) -> list[float]:
        await asyncio.sleep(60 if completions[0] != "a" else 0)
        return [1.0]

    table = score(runner([wrapped(slow, scope="completion"), "format"], step_time_limit=0.5), ["a", "b", "c"])
    assert table.values[:, 0].isnan().tolist() == [False, True, True]
    assert table.values[:, 1].tolist() == [0.0] * 3
    assert 0.4 < table.metrics["time/rewards/wait"] < 30


def test_a_group_reward_never_sees_a_part_of_a_group(runner: Callable[..., RewardRunner]) -> None:
    sizes = []

    def ranks(completions: list[str]) -> list[float]:
        sizes.append(len(completions))
        if "bad" in completions:
            raise ValueError("cannot rank this")
        return [float(sorted(completions).index(text)) for text in completions]

    table = score(runner([wrapped(ranks, scope="group")]), ["b", "a", "bad", "x", "c", "d"], GROUPS)
    assert sorted(sizes) == [2, 2, 2]  # the group that failed was not tried row by row
    torch.testing.assert_close(
        table.values[:, 0], torch.tensor([1.0, 0.0, nan, nan, 0.0, 1.0], dtype=torch.float64), equal_nan=True
    )
    assert table.metrics["rewards/ranks/errors"] == 2.0


def test_rows_name_the_rewards_that_apply_to_them(runner: Callable[..., RewardRunner]) -> None:
    seen: list[list[str]] = []

    def code(completions: list[str], tests: list[str]) -> list[float]:
        seen.append(tests)
        return [1.0] * len(completions)

    def style(completions: list[str]) -> list[float]:
        return [0.5] * len(completions)

    names = ["code", "code,style", None, ["style"]]
    table = score(runner([code, style]), ["a", "b", "c", "d"], rewards=names, tests=["t0", "t1", "t2", None])
    expected = torch.tensor([[1, nan], [1, 0.5], [1, 0.5], [nan, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(table.values, expected, equal_nan=True)
    assert seen == [["t0", "t1", "t2"]]
    with pytest.raises(RewardContractError, match=r"names the reward stile, but model\.rewards has code, style"):
        score(runner([code, style]), ["a"], rewards=["stile"])
    with pytest.raises(RewardContractError, match=r"column 'rewards' is 0\.5: expected names of rewards"):
        score(runner([code, style]), ["a"], rewards=[0.5])
    other = score(runner([style], reward_column=None), ["a"], rewards=[0.5])
    assert other.values.tolist() == [[0.5]]


def test_a_reward_that_no_row_names_is_not_called_and_has_not_failed(runner: Callable[..., RewardRunner]) -> None:
    def never(completions: list[str]) -> list[float]:
        raise AssertionError("called")

    one = runner([wrapped(never, scope="completion"), "format"])
    table = score(one, ["a", "b"], rewards=["format", "format"])
    assert table.values.isnan().tolist() == [[True, False]] * 2
    assert table.metrics["rewards/never/errors"] == 0.0


def test_calls_of_one_reward_stay_within_its_own_bound(runner: Callable[..., RewardRunner]) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def one_at_a_time(completions: list[str]) -> list[float]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.005)
        with lock:
            inside -= 1
        return [0.0]

    score(runner([wrapped(one_at_a_time, scope="completion", concurrency=1)]), ["a"] * 8)
    assert most == 1


class Unprintable(BaseException):
    def __str__(self) -> str:
        raise SystemExit(2)

    __repr__ = __str__


class Misread:
    """A value whose conversion raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __float__(self) -> float:
        raise self.error


ENDINGS = (
    *(SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), StopIteration(), Unprintable()),
    *(BaseExceptionGroup("several", [SystemExit(1)]), StopAsyncIteration(), type("Own", (BaseException,), {})()),
)


@pytest.mark.parametrize("kind", ["thread", "coroutine", "main", "value", "awaited value"])
def test_what_would_end_the_loop_is_an_ordinary_failure(kind: str, runner: Callable[..., RewardRunner]) -> None:
    def leaves(completions: list[str]) -> list[Any]:
        (error,) = (error for error in ENDINGS if type(error).__name__ == completions[0])
        if "value" in kind:
            return [Misread(error)]
        raise error

    async def leaves_too(completions: list[str]) -> list[Any]:
        return leaves(completions)

    function = leaves_too if kind in ("coroutine", "awaited value") else leaves
    isolation = "main" if kind == "main" else "thread"
    reward = FunctionReward(name="leaves", function=function, scope="completion", isolation=isolation)
    # In the main thread KeyboardInterrupt is the user's Ctrl-C.
    raised = [error for error in ENDINGS if not (kind == "main" and isinstance(error, KeyboardInterrupt))]
    for error in raised:
        with pytest.raises(RewardFailedError, match=f"(?s)'leaves' failed.*{type(error).__name__}"):
            score(runner([reward, "format"]), [type(error).__name__])


def test_an_async_reward_that_blocks_the_loop_is_reported(
    runner: Callable[..., RewardRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo_lightning.rewards.runtime.step_scoring.BLOCKED_AFTER", 0.3)
    release = threading.Event()

    async def blocks(completions: list[str]) -> list[float]:
        release.wait(30)
        return [1.0]

    with pytest.raises(RewardFailedError, match="an async reward blocks it"):
        score(runner([blocks], step_time_limit=0.1), ["a"])
    release.set()


def test_a_completion_that_is_reported_twice_or_never_is_an_error(runner: Callable[..., RewardRunner]) -> None:
    one = runner("format")
    scoring = one.start(["p", "p"], [0, 0])
    scoring.add(1, "a", [1])
    with pytest.raises(ValueError, match="completion 1 was reported twice"):
        scoring.add(1, "a", [1])
    with pytest.raises(ValueError, match="1 completions have not arrived, the first is 0"):
        one.finish(scoring)


def test_how_a_function_may_be_called_is_said_where_it_is_registered_or_in_the_config() -> None:
    try:

        @register_reward("quick", scope="completion", call_time_limit=2.0)
        def quick(completions: list[str], limit: int = 3) -> list[float]:
            return [float(len(text) <= limit) for text in completions]

        reward = get_reward_function("quick", limit=5)
        assert (reward.scope, reward.call_time_limit, reward.isolation) == ("completion", 2.0, "thread")
        assert reward(prompts=["p"], completions=["four!"]) == [1.0]
        changed = get_reward_function("quick", scope="group", concurrency=2)
        assert (changed.scope, changed.concurrency, changed.call_time_limit) == ("group", 2, 2.0)
    finally:
        REWARD_FUNCTIONS.pop("quick", None)
    with pytest.raises(TypeError, match="register_reward takes scope"):
        register_reward("other", speed=3)


@pytest.mark.parametrize(
    ("calling", "message"),
    [
        ({"scope": "row"}, "'print' has scope='row'. Choose one of completion, group, batch"),
        ({"isolation": "container"}, "isolation='container'"),
        ({"concurrency": -1}, "concurrency=-1"),
        ({"batched": True}, "batched, which has no effect with scope='batch'"),
    ],
)
def test_impossible_ways_to_be_called_are_refused(calling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardRunner([wrapped(print, **calling)])


class AsyncInMain(BaseRewardFunction):
    isolation = "main"

    async def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [1.0] * len(completions)


def test_isolation_main_is_refused_for_async_rewards_which_have_a_thread_of_their_own() -> None:
    async def graded(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(ValueError, match=r"'graded' has isolation='main', which has no effect.*plain def, or remove"):
        RewardRunner([wrapped(graded, isolation="main")])
    with pytest.raises(ValueError, match="isolation='main', which has no effect on an async def"):
        RewardRunner([AsyncInMain()])


@pytest.mark.parametrize("setting", [{"max_workers": 0}, {"time_limit": 0}, {"step_time_limit": -1}])
def test_impossible_limits_are_refused_in_the_words_of_the_config(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"model\.reward_runtime\.{name}="):
        RewardRunner([FormatReward()], **setting)


PROCESS_REWARDS = """
import os, time
import re
from dataclasses import dataclass
from grpo_lightning.rewards import BaseRewardFunction

@dataclass
class Catastrophe(BaseRewardFunction):
    '''A regular expression that holds the interpreter lock for hours on a hostile text.'''
    scope = "completion"
    isolation = "process"
    call_time_limit = 1.0

    def __call__(self, prompts, completions, log_extra, log_metric, **columns):
        log_extra("pid", [os.getpid()])
        log_metric("seen", 1.0)
        if completions[0] == "raise":
            raise KeyError("in the child")
        if completions[0] == "leave":
            os._exit(7)
        return [float(bool(re.fullmatch(r"(a+)+b", completions[0])))]

def wrong_count(completions, **columns):
    return [1.0, 2.0]

async def waits(completions, **columns):
    return [0.25]

def logs_what_no_process_can_send(completions, log_extra, **columns):
    log_extra("function", [lambda: None])
    return [1.0]

def prints_half_a_character(completions, **columns):
    print(chr(0xD83D))
    return [0.5]
"""


@pytest.fixture
def process_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "process_rewards.py").write_text(textwrap.dedent(PROCESS_REWARDS))
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    return importlib.import_module("process_rewards")


@pytest.mark.slow
def test_an_isolated_reward_that_hangs_crashes_or_raises_costs_its_completion_only(
    runner: Callable[..., RewardRunner], process_rewards: Any
) -> None:
    one = runner([process_rewards.Catastrophe(), "format"], max_error_share=1.0)
    table = score(one, ["aab", "a" * 40, "ab", "raise", "leave", "b"])
    expected = torch.tensor([1.0, nan, 1.0, nan, nan, 0.0], dtype=torch.float64)
    torch.testing.assert_close(table.values[:, 0], expected, equal_nan=True)
    assert table.metrics["rewards/Catastrophe/timeouts"] == 1.0
    assert table.metrics["rewards/Catastrophe/errors"] == 3.0
    assert os.getpid() not in table.extra["pid"] and isinstance(table.extra["pid"][0], int)
    assert table.metrics["seen"] == 1.0


@pytest.mark.slow
def test_isolated_functions_keep_the_contract_and_may_be_async(
    runner: Callable[..., RewardRunner], process_rewards: Any
) -> None:
    for name, value in (("waits", 0.25), ("prints_half_a_character", 0.5)):
        one = runner([wrapped(getattr(process_rewards, name), isolation="process")])
        assert score(one, ["a"]).values.tolist() == [[value]]
    with pytest.raises(
        RewardFailedError, match=r"(?s)'log\w+' has isolation: process, and what it logged cannot leave that: .*pickle"
    ):
        score(runner([wrapped(process_rewards.logs_what_no_process_can_send, isolation="process")]), ["a"])
    with pytest.raises(RewardContractError, match="'wrong_count' returned 2 values for 1 completions"):
        score(runner([wrapped(process_rewards.wrong_count, isolation="process")]), ["a"])


def test_a_reward_that_cannot_be_sent_to_a_process_says_so(runner: Callable[..., RewardRunner]) -> None:
    def local(completions: list[str]) -> list[float]:
        return [1.0]

    with pytest.raises(
        RewardContractError, match=r"'local' has isolation: process and cannot be sent.*module of its own"
    ):
        score(runner([wrapped(local, isolation="process")]), ["a"])


@pytest.mark.slow
def test_a_module_that_its_process_cannot_import_stops_the_run_once_with_the_childs_words(
    runner: Callable[..., RewardRunner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "only_here.py").write_text(
        "import os\nif os.environ.get('ONLY_HERE') != str(os.getpid()): raise ImportError('no such luck in a child')\n"
        "def reward(completions): return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ONLY_HERE", str(os.getpid()))
    import importlib

    reward = wrapped(importlib.import_module("only_here").reward, isolation="process", scope="completion")
    with pytest.raises(RewardContractError, match=r"(?s)'reward'.*cannot import it.*no such luck in a child"):
        score(runner([reward]), ["a", "b", "c"])
    assert "no such luck" not in capfd.readouterr().err


def test_a_slow_start_of_one_reward_does_not_hold_up_the_others(runner: Callable[..., RewardRunner]) -> None:
    order: list[str] = []
    release = threading.Event()

    class Slow(BaseRewardFunction):
        scope = "completion"

        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            release.wait(30)
            order.append("slow")
            return [0.0]

    async def quick(completions: list[str]) -> list[float]:
        order.append("quick")
        release.set()
        return [0.0]

    score(runner([Slow(), quick]), ["a"])
    assert order == ["quick", "slow"]
