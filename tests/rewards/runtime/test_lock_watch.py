"""Calls that hold the interpreter's lock for good: named and ended from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.rewards import FunctionReward, RewardRunner
from grpo_lightning.rewards.runtime import lock_watch
from grpo_lightning.rewards.runtime.lock_watch import LockWatch


def backtracks(completions: list[str], **columns: Any) -> list[float]:
    return [float(bool(re.fullmatch(r"(a+)+b", text))) for text in completions]


def waits(completions: list[str], **columns: Any) -> list[float]:
    time.sleep(60)
    return [0.0] * len(completions)


async def backtracks_on_the_loop(completions: list[str], **columns: Any) -> list[float]:
    return backtracks(completions)


def in_a_fork(function: Callable[[], None], output: Path) -> int:
    """The exit code of a process that called the function: one that hangs takes this one's tests with it otherwise."""
    pid = os.fork()
    if pid == 0:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_watch, "GRACE", 0.5)
    monkeypatch.setattr(lock_watch, "BEAT_SECONDS", 0.1)


def scored(reward: Callable[..., Any], isolation: str = "thread") -> None:
    slow = FunctionReward(name="slow", function=waits)  # waits politely: never blamed
    hangs = FunctionReward(name="hangs", function=reward, isolation=isolation)
    runner = RewardRunner([slow, hangs], time_limit=0.5, max_error_share=1.0)
    texts = ["ab", "a" * 60]
    runner.score(["p", "p"], texts, [[1], [1]])


@pytest.mark.parametrize(
    ("reward", "isolation"), [(backtracks, "thread"), (backtracks, "main"), (backtracks_on_the_loop, "thread")]
)
def test_a_run_whose_reward_never_lets_go_of_the_lock_ends_with_its_name(
    reward: Callable[..., Any], isolation: str, soon: None, tmp_path: Path
) -> None:
    """Such a call used to hang the run for good: no thread, so no time limit, gets a turn."""
    output = tmp_path / "output"
    assert in_a_fork(lambda: scored(reward, isolation), output) == -signal.SIGKILL
    said = output.read_text()
    assert "Reward 'hangs', called on 2 completions, has let nothing else in this process run" in said
    assert "isolation: process" in said and "--ckpt_path last" in said
    assert "'slow'" not in said


def test_calls_that_wait_compute_or_are_stopped_for_a_while_are_left_alone(soon: None, tmp_path: Path) -> None:
    def calls() -> None:
        watch = LockWatch()
        with watch.call("waits", 1, 0.5):
            time.sleep(1.5)
        with watch.call("computes", 1, 0.5):
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                sum(range(100))
        with watch.call("stopped", 1, 0.5):  # Ctrl-Z, and fg
            command = f"import os, signal, time; time.sleep(2); os.kill({os.getpid()}, signal.SIGCONT)"
            subprocess.Popen([sys.executable, "-S", "-c", command])
            os.kill(os.getpid(), signal.SIGSTOP)
        re.fullmatch(r"(a+)+b", "a" * 24)  # a second without a call: nobody's fault
        watch.close()

    assert in_a_fork(calls, tmp_path / "output") == 0, (tmp_path / "output").read_text()
    assert (tmp_path / "output").read_text() == ""


def test_the_watching_process_ends_with_the_watched_one(tmp_path: Path) -> None:
    children: list[int] = []

    def left() -> None:
        watch = LockWatch()
        with watch.call("any", 1, 1.0):
            assert watch._process is not None
            (tmp_path / "pid").write_text(str(watch._process.pid))
        os._exit(0)  # without close

    in_a_fork(left, tmp_path / "output")
    children.append(int((tmp_path / "pid").read_text()))
    while Path(f"/proc/{children[0]}").exists() and _is_alive(children[0]):
        time.sleep(0.02)
    watch = LockWatch()
    with watch.call("any", 1, 1.0):
        process = watch._process
    watch.close()
    assert process is not None and process.returncode is not None


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
