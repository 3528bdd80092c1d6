"""Does the completion's code pass its tests? Run in child processes without network, never in the trainer's."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardContractError, completion_text
from grpo_lightning.rewards.kinds.json_schema import FENCE, last_fence
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.runtime.sandbox import Limits, run_program

TEST_KEYS = ("tests", "test", "test_list")
MAX_CODE_CHARS = 100_000
"""Longer programs score 0 unread."""


@register_reward("code_execution")
@dataclass
class CodeExecutionReward(BaseRewardFunction):
    """Share of the row's tests that the completion's Python code passes, in [0, 1], or all or nothing.

    A test is Python source that raises where the code is wrong (``assert add(1, 2) == 3``), or a mapping with ``input``
    and ``output``: what the program reads and must print, white space at line ends aside. Each test runs in a process
    of its own, with limits on time, memory and file size, without the trainer's environment variables, and without
    network (see ``sandbox.py`` for what is enforced where). Files of the user that runs the trainer can be read and
    written: where completions are not trusted at all, run the trainer in a container.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        test_key: Dataset column with the tests of each row: one or a list. By default ``tests``, ``test`` or
            ``test_list``, whichever is found first.
        score: ``share`` of tests passed, or ``all``: 1.0 only where all pass.
        require_fence: Whether code must stand in a code fence; else a completion without one is all code.
        time_limit: Seconds per test, of wall time and of processor time.
        memory_mb: Address space of the program, in MiB.
        workers: Programs that run at the same time; by default one per processor, at most 8.
    """

    name: str = "code_execution"
    test_key: str | None = None
    score: Literal["share", "all"] = "share"
    require_fence: bool = False
    time_limit: float = 5.0
    memory_mb: int = 1024
    workers: int = 0

    scope = "completion"

    def __post_init__(self) -> None:
        if self.score not in ("share", "all"):
            raise ValueError(f"{self.name}: score={self.score!r} is unknown. Choose share or all.")
        if self.time_limit <= 0 or self.memory_mb < 64 or self.workers < 0:
            raise ValueError(
                f"{self.name}: time_limit={self.time_limit} must be above 0 seconds, memory_mb={self.memory_mb} 64 or "
                f"more, workers={self.workers} 0 or more."
            )
        self.concurrency = self.workers or min(8, os.cpu_count() or 1)
        self.call_time_limit = 3600.0  # each test has its own limit, and their number is the row's

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        completions_ids: list[list[int]] | None = None,
        trainer_state: Any | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One float per completion; None for a row without tests.

        Raises:
            RewardContractError: If no column holds tests, or a test is neither source nor input and output.
        """
        wanted = (self.test_key,) if self.test_key else TEST_KEYS
        key = next((key for key in wanted if key in columns), None)
        if key is None:
            raise RewardContractError(
                f"Reward '{self.name}' finds no tests: looked for the column {' or '.join(wanted)}. Set test_key."
            )
        results = [
            self._results(completion_text(completion), self._tests(tests))
            for completion, tests in zip(completions, columns[key], strict=True)
        ]
        if log_extra is not None:
            log_extra("test_results", [", ".join(result) for result in results])
        return [self._value(result) for result in results]

    def _value(self, results: list[str]) -> float | None:
        if not results:
            return None
        passed = results.count("passed") / len(results)
        return passed if self.score == "share" else float(passed == 1.0)

    def _results(self, text: str, tests: list[str | dict[str, str]]) -> list[str]:
        code = self._code(text)
        if code is None:
            return ["no code"] * len(tests)
        limits = Limits(self.time_limit, self.memory_mb * 2**20)
        results: list[str] = []
        for test in tests:
            results.append(_run(code, test, limits))
            if self.score == "all" and results[-1] != "passed":
                return results + ["not run"] * (len(tests) - len(results))
        return results

    def _code(self, text: str) -> str | None:
        if self.require_fence and text.count(FENCE) < 2:
            return None
        code = last_fence(text)
        return code if code.strip() and len(code) <= MAX_CODE_CHARS and "\0" not in code else None

    def _tests(self, tests: Any) -> list[str | dict[str, str]]:
        listed = [] if tests is None else tests if isinstance(tests, list | tuple) else [tests]
        for test in listed:
            if not isinstance(test, str) and not (isinstance(test, dict) and {"input", "output"} <= set(test)):
                raise RewardContractError(
                    f"Reward '{self.name}': the test {test!r:.200} is neither Python source nor a mapping with input and "
                    "output."
                )
        return list(listed)


def _run(code: str, test: str | dict[str, str], limits: Limits) -> str:
    if isinstance(test, str):
        return run_program(code, test, "", limits).verdict
    result = run_program(code, None, test["input"], limits)
    if result.verdict != "passed":
        return result.verdict
    return "passed" if _lines(result.output) == _lines(test["output"]) else "wrong output"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
