"""Does the completion's code pass its tests? Run in confined child processes, never in the trainer's."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import (
    BaseRewardFunction,
    Completion,
    RewardContractError,
    completion_text,
    dataset_columns,
)
from grpo_lightning.rewards.kinds.json_schema import FENCE, last_fence
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.row_columns import column_of
from grpo_lightning.rewards.sandbox.forms import Case, Printing, Row, recognised
from grpo_lightning.rewards.sandbox.isolation import isolation
from grpo_lightning.rewards.sandbox.judge import run_printing, run_tested
from grpo_lightning.rewards.sandbox.launch import Limits
from grpo_lightning.rewards.sandbox.python_tests import completed

log = logging.getLogger(__name__)

TEST_KEYS = ("tests", "test", "test_list", "input_output", "public_test_cases")
MAX_CODE_CHARS = 100_000
"""Longer programs score 0 unread."""


@register_reward("code_execution")
@dataclass
class CodeExecutionReward(BaseRewardFunction):
    """Share of the row's tests that the completion's Python code passes, in [0, 1], or all or nothing.

    Best are tests of input and output: what the program reads and must print, white space at line ends aside. Tests in
    Python (HumanEval, MBPP, pytest, unittest) and of a function's results (APPS, LiveCodeBench) run in a process of their
    own and call the program in its process; ``forms.py`` says which forms are known, all others are refused. The verdict
    never comes from the program's process, and the time is taken by the trainer.

    Each test runs afresh, confined by Landlock and seccomp: without network, other processes, the user's files and the
    trainer's environment. Where the kernel does not have them, the reward refuses to start.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        test_key: Dataset column with the tests of each row. By default ``tests``, ``test``, ``test_list``,
            ``input_output`` or ``public_test_cases``, whichever is found first.
        score: ``share`` of tests passed, or ``all``: 1.0 only where all pass.
        require_fence: Whether code must stand in a code fence; else a completion without one is all code.
        time_limit: Seconds per test, of wall time and of processor time, from the moment the processes are ready.
        memory_mb: Address space of the program, in MiB; it has only one process.
        workers: Programs that run at the same time; by default one per processor, at most 8.
        unsafe: Run programs where this kernel cannot confine them, too: they can then do what the trainer's user can.
    """

    name: str = "code_execution"
    test_key: str | None = None
    score: Literal["share", "all"] = "share"
    require_fence: bool = False
    time_limit: float = 5.0
    memory_mb: int = 1024
    workers: int = 0
    unsafe: bool = False

    scope = "completion"

    def __post_init__(self) -> None:
        if self.score not in ("share", "all"):
            raise ValueError(f"{self.name}: score={self.score!r} is unknown. Choose share or all.")
        if self.time_limit <= 0 or self.memory_mb < 64 or self.workers < 0:
            raise ValueError(
                f"{self.name}: time_limit={self.time_limit} must be above 0 seconds, memory_mb={self.memory_mb} 64 or "
                f"more, workers={self.workers} 0 or more."
            )
        self._check_isolation()
        self.concurrency = self.workers or min(8, os.cpu_count() or 1)
        self.call_time_limit = 3600.0  # each test has its own limit, and their number is the row's

    def _check_isolation(self) -> None:
        missing = "; ".join(f"{name}: {why}" for name, why in isolation().missing.items())
        if missing and not self.unsafe:
            raise ValueError(
                f"{self.name}: this machine cannot confine programs that a model wrote ({missing}). Train where the kernel "
                "has Landlock and seccomp (Linux 5.13 or later), or set unsafe: true in a container that holds nothing "
                "worth keeping or knowing, without network."
            )
        if missing:
            log.warning("%s runs programs unconfined, because of unsafe: true (%s).", self.name, missing)

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One float per completion; None for a row without tests.

        Raises:
            RewardContractError: If no column holds tests, or a test is in no known form.
        """
        key = self._test_column(columns)
        results = []
        for place, completion in enumerate(completions):
            row = Row.of({name: values[place] for name, values in dataset_columns(columns).items()}, prompts[place])
            results.append(self._results(completion_text(completion), self._cases(columns[key][place], row), row))
        if log_extra is not None:
            log_extra("test_results", [", ".join(result) for result in results])
        return [self._value(result) for result in results]

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuses data without a column of tests."""
        self._test_column(columns)

    def _test_column(self, columns: Collection[str]) -> str:
        return column_of(self, "test_key", "tests", TEST_KEYS, columns)

    def _cases(self, tests: Any, row: Row) -> list[Case]:
        try:
            return recognised(tests, row)
        except RewardContractError as error:
            raise RewardContractError(f"Reward '{self.name}': {error}") from error

    def _value(self, results: list[str]) -> float | None:
        if not results:
            return None
        passed = results.count("passed") / len(results)
        return passed if self.score == "share" else float(passed == 1.0)

    def _results(self, text: str, cases: list[Case], row: Row) -> list[str]:
        code = self._code(text)
        if code is None:
            return ["no code"] * len(cases)
        code = completed(code, row.prompt, row.entry_point)
        limits = Limits(self.time_limit, self.memory_mb * 2**20, self.unsafe)
        results: list[str] = []
        for case in cases:
            results.append(_verdict(code, case, limits))
            if self.score == "all" and results[-1] != "passed":
                return results + ["not run"] * (len(cases) - len(results))
        return results

    def _code(self, text: str) -> str | None:
        if self.require_fence and text.count(FENCE) < 2:
            return None
        code = last_fence(text)
        return code if code.strip() and len(code) <= MAX_CODE_CHARS and "\0" not in code else None


def _verdict(code: str, case: Case, limits: Limits) -> str:
    if not isinstance(case, Printing):
        return run_tested(code, case, limits).verdict
    result = run_printing(code, case.input, limits, len(case.output))
    if result.verdict != "passed":
        return result.verdict
    return "passed" if _lines(result.output) == _lines(case.output) else "wrong output"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
