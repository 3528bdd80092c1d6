"""Settings that rewards share with training: whatever a call leaves changed is put back, and said."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import fit, share_of_digits, weights
from visible_devices import visible

from grpo_lightning.rewards import FunctionReward, RewardRunner
from grpo_lightning.rewards.runtime.call_rows import CallRows, RewardState
from grpo_lightning.rewards.runtime.process_caller import ProcessCaller
from grpo_lightning.rewards.runtime.process_state import ProcessState, umask

Change = tuple[Callable[[], Any], Callable[[], Any]]
"""What a reward does, and how to see whether it is still so."""

OF_PROCESS: dict[str, Change] = {
    "torch's default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "torch.use_deterministic_algorithms": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "torch's float32 matmul precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "torch's anomaly mode": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "torch.backends.cudnn": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.cudnn.benchmark,
    ),
    "the start method of multiprocessing": (
        lambda: multiprocessing.set_start_method("spawn", force=True),
        multiprocessing.get_start_method,
    ),
    "os.environ": (
        lambda: os.environ.update(CUDA_VISIBLE_DEVICES="7"),
        lambda: os.environ.get("CUDA_VISIBLE_DEVICES"),
    ),
    "os.umask": (lambda: os.umask(0o777), umask),
    "sys.stdout": (lambda: setattr(sys, "stdout", io.StringIO()), lambda: sys.stdout),
    "sys.stderr": (lambda: setattr(sys, "stderr", io.StringIO()), lambda: sys.stderr),
    "the filters of warnings": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "logging.disable": (lambda: logging.disable(logging.CRITICAL), lambda: logging.root.manager.disable),
    "gc.disable": (gc.disable, gc.isenabled),
    "sys.setrecursionlimit": (lambda: sys.setrecursionlimit(400), sys.getrecursionlimit),
    "torch.set_num_threads": (lambda: torch.set_num_threads(7), torch.get_num_threads),
}
OF_MAIN_THREAD: dict[str, Change] = {
    "torch's grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "torch's default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "torch's autocast on cpu": (
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: torch.is_autocast_enabled("cpu"),
    ),
    "the handler of SIGTERM": (
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGTERM),
    ),
    "the handler of SIGINT": (
        lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        lambda: signal.getsignal(signal.SIGINT),
    ),
    "a pending signal.alarm": (lambda: signal.alarm(1000), lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0),
}
CASES = [(name, "thread") for name in OF_PROCESS] + [(name, "main") for name in OF_PROCESS | OF_MAIN_THREAD]


def scored(function: Callable[..., Any], isolation: str, **runtime: Any) -> list[float]:
    runner = RewardRunner([FunctionReward(name="changes", function=function, isolation=isolation)], **runtime)
    try:
        return runner.score(["p"] * 2, ["a", "bc"], [[1], [2]]).values[:, 0].tolist()
    finally:
        runner.close()


@pytest.mark.parametrize(("name", "isolation"), CASES, ids=[f"{name}-{where}" for name, where in CASES])
def test_what_a_call_leaves_changed_is_put_back_and_said(
    name: str, isolation: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, seen = (OF_PROCESS | OF_MAIN_THREAD)[name]
    before, inside = seen(), []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        change()
        inside.append(seen())
        return [1.0] * len(completions)

    with caplog.at_level(logging.WARNING):
        assert scored(reward, isolation) == [1.0, 1.0]
    assert inside[0] != before, "the change is none"
    assert seen() == before
    assert f"Reward 'changes' changed {name}" in caplog.text and "isolation: process" in caplog.text


def test_a_change_by_a_call_that_raises_is_put_back_too() -> None:
    def reward(completions: list[str], **columns: Any) -> list[float]:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        raise ValueError("no score")

    assert all(np.isnan(scored(reward, "main", max_error_share=1.0)))
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_a_change_for_the_time_of_a_call_and_a_key_of_a_judge_are_nobodys_business(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)

    def reward(completions: list[str], **columns: Any) -> list[float]:
        os.environ["JUDGE_KEY"] = "k"
        with torch.no_grad(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            return [1.0] * len(completions)

    with caplog.at_level(logging.WARNING):
        scored(reward, "main")
    assert os.environ.pop("JUDGE_KEY") == "k"
    assert "left it so" not in caplog.text


def test_a_call_that_ends_leaves_another_the_setting_of_its_own_time(caplog: pytest.LogCaptureFixture) -> None:
    state = ProcessState()
    with state.call("long"):
        torch.set_default_dtype(torch.float64)
        with state.call("short"):
            pass
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)
    assert "left it so" not in caplog.text


def test_what_a_call_that_was_given_up_changed_is_put_back_before_training_goes_on() -> None:
    state, release, entered = ProcessState(), threading.Event(), threading.Event()

    def hangs() -> None:
        with state.call("hangs"):
            torch.set_default_dtype(torch.float64)
            entered.set()
            release.wait()
            torch.set_default_dtype(torch.bfloat16)

    thread = threading.Thread(target=hangs)
    thread.start()
    entered.wait()
    state.settle()
    assert torch.get_default_dtype() == torch.float32
    release.set()
    thread.join()
    assert torch.get_default_dtype() == torch.float32


def test_a_call_that_never_ends_takes_nothing_back_that_training_has_changed_since(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state, release = ProcessState(), threading.Event()

    def step(name: str, work: Callable[[], object]) -> threading.Thread:
        entered = threading.Event()

        def call() -> None:
            with state.call(name):
                work()
                entered.set()
                release.wait()

        thread = threading.Thread(target=call)
        thread.start()
        entered.wait()
        state.settle()
        return thread

    monkeypatch.setenv("TORCH_OF_TRAINING", "at the start")
    threads = [step("hangs", lambda: None)]
    monkeypatch.setenv("TORCH_OF_TRAINING", "of the second step")
    with caplog.at_level(logging.WARNING):
        threads.append(step("other", lambda: None))
    assert os.environ["TORCH_OF_TRAINING"] == "of the second step" and "left it so" not in caplog.text
    with caplog.at_level(logging.WARNING):
        threads.append(step("changes", lambda: os.environ.update(TORCH_OF_TRAINING="of a reward")))
    assert os.environ["TORCH_OF_TRAINING"] == "of the second step"
    assert "One of the rewards 'changes', 'hangs', 'other' changed os.environ" in caplog.text
    monkeypatch.setenv("TORCH_OF_TRAINING", "of the fourth step")  # in which no reward is called here
    state.settle()
    assert os.environ["TORCH_OF_TRAINING"] == "of the fourth step"
    release.set()
    for thread in threads:
        thread.join()
    assert os.environ["TORCH_OF_TRAINING"] == "of the fourth step"


def test_only_rewards_that_were_called_since_are_named(caplog: pytest.LogCaptureFixture) -> None:
    state, release, entered = ProcessState(), threading.Event(), threading.Event()

    def hangs() -> None:
        with state.call("hangs"):
            entered.set()
            release.wait()

    thread = threading.Thread(target=hangs)
    thread.start()
    entered.wait()
    with state.call("of the first step"):
        pass
    state.settle()
    with caplog.at_level(logging.WARNING), state.call("of the second"):
        torch.set_default_dtype(torch.float64)
    state.settle()
    assert torch.get_default_dtype() == torch.float32
    assert "One of the rewards 'hangs', 'of the second' changed" in caplog.text
    release.set()
    thread.join()


@pytest.mark.parametrize("isolation", ["thread", "main"])
def test_a_reward_that_changes_all_of_it_and_every_seed_changes_nothing_of_a_run(
    isolation: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    def hostile(completions: list[str], **columns: Any) -> list[float]:
        for change, _ in (OF_PROCESS | (OF_MAIN_THREAD if isolation == "main" else {})).values():
            change()
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(random.randrange(1000))
        return share_of_digits(completions)

    ends = []
    for number, function in enumerate((share_of_digits, hostile)):
        folder = tmp_path / str(number)
        folder.mkdir()
        reward = FunctionReward(name="digits", function=function, isolation=isolation)
        ends.append(weights(fit(tiny_model_dir, folder, max_steps=2, rewards=[reward])))
    for name, wanted in ends[0].items():
        torch.testing.assert_close(ends[1][name], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("isolation", ["thread", "main"])
def test_a_logger_that_was_asked_while_a_reward_had_disabled_logging_speaks_afterwards(
    isolation: str, caplog: pytest.LogCaptureFixture
) -> None:
    of_training, inside = logging.getLogger("grpo_lightning.of_training"), []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        logging.disable(logging.CRITICAL)
        inside.append(of_training.isEnabledFor(logging.WARNING))
        return [1.0] * len(completions)

    with caplog.at_level(logging.WARNING):
        scored(reward, isolation)
        of_training.warning("training goes on")
    assert inside == [False]
    assert "training goes on" in caplog.text


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_was_none_is_none_again(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process without a console."""

    def reward(completions: list[str], **columns: Any) -> list[float]:
        setattr(sys, stream, io.StringIO())
        return [1.0] * len(completions)

    monkeypatch.setattr(sys, stream, None)
    assert scored(reward, "thread") == [1.0, 1.0]
    assert getattr(sys, stream) is None


def test_a_precision_that_torch_does_not_tell_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> str:
        raise RuntimeError("both interfaces were used")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    assert scored(lambda completions, **columns: [1.0] * len(completions), "thread") == [1.0, 1.0]


def test_calls_that_catch_the_output_at_the_same_time_leave_it_to_training() -> None:
    both, first_is_out = threading.Barrier(2), threading.Event()
    before = sys.stdout

    def catching(completions: list[str], **columns: Any) -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            both.wait(60)
            if completions == ["bc"]:  # leaves last: what it puts back is the other's buffer, or the other way round
                assert first_is_out.wait(60)
        first_is_out.set()
        return [1.0] * len(completions)

    reward = FunctionReward(name="catching", function=catching, isolation="thread", scope="completion", concurrency=2)
    runner = RewardRunner([reward])
    try:
        assert runner.score(["p"] * 2, ["a", "bc"], [[1], [2]]).values[:, 0].tolist() == [1.0, 1.0]
    finally:
        runner.close()
        found, sys.stdout = sys.stdout, before
    assert found is before


def test_a_pool_fixes_the_start_method_and_changes_none(caplog: pytest.LogCaptureFixture) -> None:
    def reward(completions: list[str], **columns: Any) -> list[float]:
        multiprocessing.get_start_method()  # as the pool of any context does
        return [1.0] * len(completions)

    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    try:
        with caplog.at_level(logging.WARNING):
            assert scored(reward, "thread") == [1.0, 1.0]
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert "left it so" not in caplog.text


def test_streams_filters_and_limits_that_do_no_harm_are_left(caplog: pytest.LogCaptureFixture) -> None:
    class Passing(io.TextIOWrapper):
        """As a progress bar has it."""

    passing = Passing(io.BytesIO())

    def reward(completions: list[str], **columns: Any) -> list[float]:
        warnings.filterwarnings("ignore", message="of a library")
        sys.setrecursionlimit(5000)
        sys.stdout = passing
        return [1.0] * len(completions)

    before, depth = sys.stdout, sys.getrecursionlimit()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        try:
            scored(reward, "main")
            assert sys.stdout is passing and sys.getrecursionlimit() == 5000
            assert any(each[0] == "ignore" and each[1] is not None for each in warnings.filters)
        finally:
            sys.stdout = before
            sys.setrecursionlimit(depth)
    assert "left it so" not in caplog.text


@pytest.mark.parametrize(("left", "then"), [(400, 2000), (999, 2000), (1000, 1000), (5000, 5000)])
def test_a_limit_on_nested_calls_that_a_library_raised_is_put_back_as_it_was(left: int, then: int) -> None:
    depth = sys.getrecursionlimit()

    def reward(completions: list[str], **columns: Any) -> list[float]:
        sys.setrecursionlimit(left)
        return [1.0] * len(completions)

    sys.setrecursionlimit(2000)
    try:
        scored(reward, "thread")
        assert sys.getrecursionlimit() == then
    finally:
        sys.setrecursionlimit(depth)


def test_the_process_of_a_reward_sees_the_gpu_of_its_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(device: torch.device | None) -> float:
        reward = FunctionReward(name="visible", function=visible, isolation="process", concurrency=1)
        caller = ProcessCaller(reward, 60.0, device)
        try:
            return asyncio.run(caller(CallRows(["p"], ["c"], [[1]], {}, RewardState()))).rewards[0]
        finally:
            caller.close()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert seen(torch.device("cuda", 2)) == 6.0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert seen(torch.device("cuda", 2)) == 2.0
    assert seen(torch.device("cpu")) == -1.0
