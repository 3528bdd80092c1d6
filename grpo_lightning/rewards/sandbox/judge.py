"""The verdict on a program: by what it prints, or by a test that calls it from another process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grpo_lightning.rewards.sandbox.launch import MAX_OUTPUT, Child, Limits


@dataclass(frozen=True)
class TestSource:
    """A test in Python."""

    __test__ = False  # for pytest, which collects what is called Test

    code: str
    """Raises where the program is wrong."""
    setup: str = ""
    """Runs before it, with the names of the program, and is trusted like it."""
    form: str = "asserts"
    """asserts, unittest or pytest: how the functions and classes in it are run."""


@dataclass(frozen=True)
class RunResult:
    """How a program ended."""

    verdict: str
    """passed, failed (it raised, or a test did), timeout, or died (killed, or left without a word)."""
    output: str = ""
    """What it printed, cut off at ``MAX_OUTPUT`` bytes or twice what is expected."""
    why: str = ""
    """What failed, from the side of the test."""


def run_printing(code: str, stdin: str, limits: Limits, expected: int = 0) -> RunResult:
    """Runs a program that reads ``stdin`` and prints; passed says only that it came to its end.

    Args:
        code: The program.
        stdin: What it reads.
        limits: For it.
        expected: Characters that a right program prints: twice as many bytes are read where that is more than ``MAX_OUTPUT``.
    """
    with _workdirs(1) as (folder,), tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(stdin.encode("utf-8", errors="replace"))
        given.seek(0)
        child = Child("print_output", {"code": code}, limits, folder, stdin=given, stdout=printed)
        try:
            child.wait_until_ready()
            status = child.wait(limits.seconds)
        finally:
            child.end()
        printed.seek(0)
        output = printed.read(max(MAX_OUTPUT, 2 * expected)).decode(errors="replace")
    return RunResult(_verdict(status), output)


def _verdict(status: int | None) -> str:
    if status is None or status == -signal.SIGXCPU:
        return "timeout"
    return {0: "passed", 1: "failed"}.get(status, "died")


def run_tested(code: str, test: TestSource, limits: Limits) -> RunResult:
    """Runs a program in one process and its test in another; the verdict comes from the latter."""
    with _workdirs(2) as folders, contextlib.ExitStack() as stack:
        to_program, to_test, verdict = os.pipe(), os.pipe(), os.pipe()
        ours = [to_program[0], to_program[1], to_test[0], to_test[1], verdict[1]]
        stack.callback(os.close, verdict[0])
        program_wire, test_wire = [to_program[0], to_test[1]], [to_test[0], to_program[1]]
        asked = {"test": test.code, "setup": test.setup, "form": test.form, "wire": test_wire, "verdict": verdict[1]}
        try:
            program = Child("serve", {"code": code, "wire": program_wire}, limits, folders[0], program_wire)
            stack.callback(program.end)
            tester = Child("test", asked, limits, folders[1], [*test_wire, verdict[1]])
            stack.callback(tester.end)
        finally:
            for descriptor in ours:
                os.close(descriptor)
        program.wait_until_ready()
        tester.wait_until_ready()
        return _read_verdict(verdict[0], time.monotonic() + limits.seconds)


def _read_verdict(descriptor: int, deadline: float) -> RunResult:
    text = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return RunResult("timeout")
        more = os.read(descriptor, 65536)
        if not more:
            break
        text += more
    if not text:
        return RunResult("died", why="the test's process ended without a verdict")
    verdict, why = json.loads(text)
    return RunResult(verdict, why=why)


@contextlib.contextmanager
def _workdirs(count: int) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory(prefix="grpo-sandbox-", ignore_cleanup_errors=True) as folder:
        paths = [Path(folder, str(number)) for number in range(count)]
        for path in paths:
            path.mkdir()
        yield [str(path) for path in paths]
