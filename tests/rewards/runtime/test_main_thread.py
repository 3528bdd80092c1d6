"""Tests of rewards that work in the main thread only: found in their code, or by what a call asks for."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from asyncio import events
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import math_verify
import pytest
from math_verify import parse

from grpo_lightning.rewards import (
    AccuracyReward,
    BaseRewardFunction,
    FunctionReward,
    RewardContractError,
    RewardRunner,
    RewardTable,
    resolve_rewards,
)
from grpo_lightning.rewards.runtime.signal_probe import SignalProbe
from grpo_lightning.rewards.runtime.thread_needs import main_thread_reason

MAIN = threading.main_thread()


@pytest.fixture
def runner() -> Iterator[Callable[..., RewardRunner]]:
    made: list[RewardRunner] = []

    def make(*rewards: Any, **runtime: Any) -> RewardRunner:
        made.append(RewardRunner(resolve_rewards(list(rewards)), **runtime))
        return made[-1]

    yield make
    for one in made:
        one.close()


def score(runner: RewardRunner, completions: list[str]) -> RewardTable:
    return runner.score(["p"] * len(completions), completions, [[1]] * len(completions))


def with_alarm(text: str) -> float:
    signal.alarm(0)
    return 1.0


def by_attribute(completions: Any) -> Any:
    return [math_verify.parse(text) for text in completions]


def by_name(completions: Any) -> Any:
    return [parse(text) for text in completions]


def by_import_inside(completions: Any) -> Any:
    import signal as s

    return [s.setitimer(s.ITIMER_REAL, 0) for _ in completions]


def by_from_import_inside(completions: Any) -> Any:
    from latex2sympy2_extended import latex2sympy

    return [latex2sympy(text) for text in completions]


def by_helper(completions: Any) -> Any:
    return [with_alarm(text) for text in completions]


def in_a_nested_function(completions: Any) -> Any:
    def inner(text: str) -> Any:
        return signal.signal(signal.SIGALRM, signal.SIG_DFL)

    return [inner(text) for text in completions]


def by_a_handler(completions: Any) -> Any:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return [signal.signal(signal.SIGTERM, before) for _ in completions]


def by_a_handler_imported_inside(completions: Any) -> Any:
    from signal import SIGTERM, getsignal
    from signal import signal as handle

    return [handle(SIGTERM, getsignal(SIGTERM)) for _ in completions]


def by_a_module_for_an_inner_function(completions: Any) -> Any:
    import os.path as path
    import signal as s

    def inner(text: str) -> Any:
        return s.alarm(len(path.basename(text)))

    return [inner(text) for text in completions]


def by_another_name(completions: Any) -> Any:
    s = signal
    return [s.alarm(0) for _ in completions]


def by_an_import_that_may_fail(completions: Any) -> Any:
    try:
        import signal
    except ImportError:
        signal = None  # type: ignore[assignment]
    return [signal.alarm(0) for _ in completions]


def by_one_of_two_modules(completions: Any) -> Any:
    if len(completions) > 1:
        import signal as clock
    else:
        import time as clock  # type: ignore[no-redef]
    return [clock.alarm(0) for _ in completions]


def by_an_import_further_down(completions: Any) -> Any:
    clock = None
    for _ in completions:
        if clock is not None:
            clock.alarm(0)
        import signal as clock
    return clock


def by_an_inner_functions_import(completions: Any) -> Any:
    clock: Any = None

    def start() -> None:
        nonlocal clock
        import signal as clock  # type: ignore[no-redef]

    start()
    return [clock.alarm(0) for _ in completions]


def by_names_of_names(completions: Any) -> Any:
    third = second = first = None
    for _ in completions:
        if third is not None:
            third.alarm(0)
        third = second
        second = first
        first = signal
    return third


def by_two_names_at_once(completions: Any) -> Any:
    clock = other = signal
    return [clock.alarm(0) for _ in (completions, other)]


def by_a_name_in_an_expression(completions: Any) -> Any:
    return [(clock := signal).alarm(0) for _ in completions], clock


def by_a_module_of_a_module(completions: Any) -> Any:
    return [subprocess.signal.alarm(0) for _ in completions]  # type: ignore[attr-defined]


def by_default(completions: Any, grade: Callable[..., Any] = parse) -> Any:
    return [grade(text) for text in completions]


def by_event_loop(completions: Any) -> Any:
    return asyncio.get_event_loop()


class Holder:
    def __init__(self, part: Any) -> None:
        self.part = part

    def __call__(self, completions: Any) -> Any:
        return [self.part(text) for text in completions]


class Own(BaseRewardFunction):
    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [self.grade(text) for text in completions]

    def grade(self, text: str) -> float:
        return with_alarm(text)


def closure() -> Any:
    grade = by_name
    return lambda completions: grade(completions)


def without_wraps(function: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def over(connection: Any) -> Any:
    def reward(completions: Any) -> Any:
        return [connection.execute("select 1").fetchone()[0] for _ in completions]

    return reward


@pytest.mark.parametrize(
    "reward",
    [
        by_attribute,
        by_name,
        by_import_inside,
        by_from_import_inside,
        by_helper,
        in_a_nested_function,
        by_a_handler,
        by_a_handler_imported_inside,
        by_a_module_for_an_inner_function,
        by_another_name,
        by_an_import_that_may_fail,
        by_one_of_two_modules,
        by_an_import_further_down,
        by_an_inner_functions_import,
        by_names_of_names,
        by_two_names_at_once,
        by_a_name_in_an_expression,
        by_a_module_of_a_module,
        by_default,
        by_event_loop,
        functools.partial(by_default, grade=with_alarm),
        Holder(with_alarm),
        Holder(functools.lru_cache(with_alarm)),
        Holder(Holder(parse)),
        Holder({"grade": parse}),
        Own(),
        Own().grade,
        closure(),
        without_wraps(by_name),
        over(sqlite3.connect(":memory:")),
        lambda completions: [with_alarm(text) for text in completions],
    ],
)
def test_the_source_shows_that_a_reward_needs_the_main_thread(reward: Any) -> None:
    assert main_thread_reason(reward)


def kills(completions: Any) -> Any:
    import os

    return [os.kill(1, signal.SIGKILL) for _ in completions]


def of_a_librarys_part(completions: Any) -> Any:
    """As functions of asyncio itself ask for it, which work in any thread."""
    return [events.get_event_loop for _ in completions]


def own_name(completions: Any, alarm: float = 0.0) -> Any:
    return [alarm for _ in completions]


class Clock:
    alarm = 0.0
    signal = 1.0
    lighteval = 2.0


def alarms_of_a_clock_beside_signals(completions: Any) -> Any:
    clock = Clock()
    return [clock.alarm + clock.signal + signal.SIGKILL for _ in completions]


def a_clock_called_signal(signal: Clock) -> Any:
    """Beside the module, which is global here."""
    return signal.alarm, [signal.alarm for _ in "ab"], asyncio.sleep


def a_name_that_held_another_module(completions: Any) -> Any:
    import os as clock

    here = clock.getcwd()
    clock = Clock()  # type: ignore[assignment]
    return here, clock.alarm, signal.SIGKILL  # type: ignore[attr-defined]


def a_verdict_called_like_a_package(completions: Any) -> Any:
    return [Clock.lighteval for _ in completions]


def seen_beside_an_alarm() -> Exception:
    """An error whose traceback leads to a frame that knows ``with_alarm``."""
    helper = with_alarm
    try:
        raise ValueError(helper.__name__)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "reward",
    [
        kills,
        own_name,
        alarms_of_a_clock_beside_signals,
        a_clock_called_signal,
        a_name_that_held_another_module,
        a_verdict_called_like_a_package,
        of_a_librarys_part,
        Holder(len),
        len,
        AccuracyReward(),
        functools.partial(own_name),
        Holder(seen_beside_an_alarm()),
    ],
)
def test_rewards_that_use_no_alarm_stay_in_threads(reward: Any) -> None:
    assert main_thread_reason(reward) == ""


def test_a_reward_with_alarms_is_called_in_the_main_thread_beside_others_in_threads(
    runner: Callable[..., RewardRunner], caplog: pytest.LogCaptureFixture
) -> None:
    seen: dict[str, Any] = {}

    def limited(completions: list[str]) -> list[float]:
        signal.alarm(0)
        seen["limited"] = threading.current_thread()
        return [1.0] * len(completions)

    def plain(completions: list[str]) -> list[float]:
        seen["plain"] = threading.current_thread()
        return [2.0] * len(completions)

    caplog.set_level(logging.INFO, "grpo_lightning")
    table = score(runner(limited, plain), ["a", "b"])
    assert table.values.tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert seen["limited"] is MAIN and seen["plain"] is not MAIN
    assert "Reward 'limited' is called in the main thread" in caplog.text and "uses signal.alarm" in caplog.text


def hidden(kind: str) -> Any:
    """Asks for a signal so that only a call can show it, and hides the error."""

    def reward(completions: list[str]) -> list[float]:
        try:
            module = sys.modules["sig" + "nal"]
            getattr(module, kind)(*{"alarm": [0], "setitimer": [0, 0.0], "signal": [14, 0]}[kind])
        except Exception:
            return [0.0] * len(completions)
        return [float(threading.current_thread() is MAIN)] * len(completions)

    return reward


@pytest.mark.parametrize("kind", ["alarm", "setitimer", "signal"])
@pytest.mark.parametrize("scope", ["batch", "group", "completion"])
def test_a_call_that_hides_its_need_is_made_again_in_the_main_thread(
    runner: Callable[..., RewardRunner], kind: str, scope: str
) -> None:
    reward = FunctionReward(function=hidden(kind), scope=scope)
    assert main_thread_reason(reward.function) == ""
    one = runner(reward)
    for _ in range(2):
        assert score(one, ["a", "b"]).values.tolist() == [[1.0], [1.0]]


def test_a_reward_that_sets_a_handler_is_called_once(runner: Callable[..., RewardRunner]) -> None:
    seen: list[bool] = []

    def handling(completions: list[str]) -> list[float]:
        seen.append(threading.current_thread() is MAIN)
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, before)
        return [1.0] * len(completions)

    assert score(runner(handling), ["a"]).values.tolist() == [[1.0]]
    assert seen == [True]


def test_signals_are_themselves_again_after_the_calls(runner: Callable[..., RewardRunner]) -> None:
    before = (signal.alarm, signal.setitimer, signal.siginterrupt)
    score(runner(lambda completions: [1.0] * len(completions)), ["a"])
    assert (signal.alarm, signal.setitimer, signal.siginterrupt) == before
    with SignalProbe() as probe:  # in the main thread everything is allowed
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
    assert not probe.asked


async def graded(completions: list[str]) -> list[float]:
    try:
        return [float(bool(parse(text, raise_on_error=True))) for text in completions]
    except Exception:
        return [0.0] * len(completions)


def gives_what_is_awaited(completions: list[str]) -> Any:
    return graded(completions)


def gives_a_hidden_coroutine(completions: list[str]) -> Any:
    """Nothing in its code tells that it needs the main thread."""
    return globals()["grad" + "ed"](completions)


def asks_before_it_gives_a_coroutine(completions: list[str]) -> Any:
    """Which the main thread allows; of what is awaited then it does not."""
    hidden("alarm")(completions)
    return gives_a_hidden_coroutine(completions)


@pytest.mark.parametrize(
    ("function", "isolation"),
    [
        (graded, "thread"),
        *itertools.product(
            (gives_what_is_awaited, gives_a_hidden_coroutine, asks_before_it_gives_a_coroutine), ("thread", "main")
        ),
    ],
)
def test_a_reward_that_asks_for_signals_in_a_coroutine_stops_the_run(
    runner: Callable[..., RewardRunner], function: Any, isolation: str
) -> None:
    reward = FunctionReward(name="graded", function=function, isolation=isolation)
    with pytest.raises(RewardContractError, match=r"'graded' asks for a signal.*in a coroutine.*isolation: process"):
        score(runner(reward), ["$1$"])


def test_a_coroutine_that_only_the_main_thread_can_make_is_awaited_like_any_other(
    runner: Callable[..., RewardRunner],
) -> None:
    made: list[bool] = []

    async def one_each(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    def made_in_main(completions: list[str]) -> Any:
        made.append(hidden("alarm")(completions) == [1.0])
        return one_each(completions)

    assert score(runner(made_in_main), ["a"]).values.tolist() == [[1.0]]
    assert made == [False, True]


def test_waiting_for_rewards_in_another_thread_stops_the_run_with_the_reason(
    runner: Callable[..., RewardRunner],
) -> None:
    one, raised = runner(by_helper), []

    def work() -> None:
        try:
            score(one, ["a"])
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work, name="trainer of a notebook")
    thread.start()
    thread.join()
    assert isinstance(raised[0], RewardContractError)
    assert "needs the main thread" in str(raised[0]) and "trainer of a notebook" in str(raised[0])


def test_failures_in_the_main_thread_cost_their_completion_as_elsewhere(runner: Callable[..., RewardRunner]) -> None:
    def limited(completions: list[str]) -> list[float]:
        signal.alarm(0)
        if "stop" in completions:
            raise StopIteration
        if "exit" in completions:
            raise SystemExit(3)
        return [float(text) for text in completions]

    reward = FunctionReward(function=limited, scope="completion")
    table = score(runner(reward, max_error_share=1.0), ["1", "x", "stop", "exit", "2"])
    assert [v == v for v in table.values[:, 0].tolist()] == [True, False, False, False, True]
    assert table.metrics["rewards/limited/errors"] == 3.0


def test_ctrl_c_in_a_call_on_the_main_thread_ends_the_wait(runner: Callable[..., RewardRunner]) -> None:
    def limited(completions: list[str]) -> list[float]:
        signal.alarm(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(runner(limited), ["a"])


def test_isolation_main_asks_for_the_main_thread_by_name(runner: Callable[..., RewardRunner]) -> None:
    def where(completions: list[str]) -> list[float]:
        return [float(threading.current_thread() is MAIN)] * len(completions)

    assert score(runner(FunctionReward(function=where, isolation="main")), ["a"]).values.tolist() == [[1.0]]
    assert score(runner(where), ["a"]).values.tolist() == [[0.0]]


def test_rewards_without_a_limit_are_waited_for(runner):
    """It ended the first step: timestamp out of range for platform time_t."""
    unlimited = runner(lambda completions: [1.0 for _ in completions], time_limit=inf, step_time_limit=inf)
    assert score(unlimited, ["a"]).values.tolist() == [[1.0]]
