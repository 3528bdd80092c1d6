"""The scoring of one step: rewards are called as their completions arrive, and the table is read at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from grpo_lightning.messages import Conversation, Prompt
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardContractError, RewardState, asks_for
from grpo_lightning.rewards.runtime.call_rows import CallRows
from grpo_lightning.rewards.runtime.event_loop import ends_unheard
from grpo_lightning.rewards.runtime.failures import RewardFailedError
from grpo_lightning.rewards.runtime.outcome import Outcome
from grpo_lightning.rewards.runtime.reward_call import CallTimeoutError
from grpo_lightning.rewards.runtime.tracebacks import traceback_of

if TYPE_CHECKING:  # a reward's process imports this package, and does without torch
    from grpo_lightning.rewards.runtime.reward_calls import RewardCalls

BLOCKED_AFTER = 30.0
"""Seconds past the step's limit after which the event loop counts as blocked."""


class StepScoring:
    """The rewards of N completions, under way.

    Which rows each call sees is fixed from the start; only when a call starts depends on when completions arrive.

    Args:
        calls: Of R rewards.
        rows_of_calls: For each reward the rows of each of its calls.
        prompts: N prompts.
        group: N numbers, the same for completions of one prompt.
        columns: Dataset columns, N entries each.
        state: Where training stands.
    """

    def __init__(
        self,
        calls: RewardCalls,
        rows_of_calls: Sequence[Sequence[Sequence[int]]],
        prompts: Sequence[Prompt],
        group: Sequence[int],
        columns: Mapping[str, Sequence[Any]],
        state: RewardState,
    ) -> None:
        count = len(prompts)
        self._calls, self.step_time_limit = calls, calls.runtime.step_time_limit
        self.rows_of_calls = [[list(rows) for rows in of_reward] for of_reward in rows_of_calls]
        lists = {name: list(values) for name, values in columns.items()}
        self.rows = CallRows(
            list(prompts), [""] * count, [[] for _ in prompts], lists, state, list(group), None, [None] * count
        )
        self.wait_seconds = 0.0
        """How long ``outcomes`` had to wait: what the rewards added to the step."""
        self._added = [False] * count
        self._needs_logprobs = [asks_for(reward, "logprobs") and "logprobs" not in columns for reward in calls.rewards]
        # A call waits for its completions, and for the logprobs, which come with the last of all.
        self._missing = [
            [len(rows) + needs for rows in of_reward]
            for of_reward, needs in zip(rows_of_calls, self._needs_logprobs, strict=True)
        ]
        self._tasks: list[list[asyncio.Task[Outcome] | None]] = [[None] * len(of_reward) for of_reward in rows_of_calls]
        self._calls_of_row: list[list[tuple[int, int]]] = [[] for _ in prompts]
        for r, of_reward in enumerate(rows_of_calls):
            for c, rows in enumerate(of_reward):
                for row in rows:
                    self._calls_of_row[row].append((r, c))

    def add(
        self, row: int, completion: Completion, ids: Sequence[int], conversation: Conversation | None = None
    ) -> None:
        """Completion ``row`` has arrived; from any one thread. Starts the calls that waited for it alone.

        Args:
            row: Which.
            completion: Text or messages.
            ids: Its tokens.
            conversation: Of several turns. One whose environment failed is left out of every call and gets no reward.

        Raises:
            ValueError: If it has arrived before.
        """
        if self._added[row]:
            raise ValueError(f"completion {row} was reported twice; on_completed is called once for each.")
        self._added[row] = True
        self.rows.completions[row] = completion
        self.rows.completions_ids[row] = list(ids)
        self.rows.conversations[row] = conversation
        if conversation is not None:
            self.rows.prompts[row] = conversation.asked(self.rows.prompts[row])  # as in TRL
            for name, value in conversation.columns.items():
                self.rows.columns.setdefault(name, [None] * len(self.rows))[row] = value
        for r, c in self._calls_of_row[row]:
            if conversation is not None and conversation.is_fault:
                self.rows_of_calls[r][c].remove(row)
            self._one_less(r, c)

    def add_logprobs(self, logprobs: Sequence[Sequence[float]] | None) -> None:
        """The logprobs of all completions' tokens, or that there are none; from the thread that adds completions."""
        if logprobs is not None:
            self.rows = replace(self.rows, logprobs=[list(of_one) for of_one in logprobs])
        for r, needs in enumerate(self._needs_logprobs):
            for c in range(len(self.rows_of_calls[r]) if needs else 0):
                self._one_less(r, c)

    def _one_less(self, r: int, c: int) -> None:
        self._missing[r][c] -= 1
        if not self._missing[r][c]:
            self._calls.loop.loop.call_soon_threadsafe(self._start, r, c)

    def missing(self) -> list[int]:
        """Completions that have not arrived yet."""
        return [row for row, added in enumerate(self._added) if not added]

    def outcomes(self) -> list[Outcome]:
        """What each reward gave, all completions having arrived; waits for calls that still run.

        To be called in the main thread, where some rewards must run.

        Raises:
            RewardContractError: The first, in the order of rewards and rows, that broke the contract.
            RewardFailedError: If an asynchronous reward blocks the event loop.
        """
        if missing := self.missing():
            raise ValueError(f"{len(missing)} completions have not arrived, the first is {missing[0]}.")
        started = time.perf_counter()
        future = self._calls.loop.start(self._finish())
        try:
            self._calls.main_thread.serve_until(future, self.step_time_limit + BLOCKED_AFTER)
            results = future.result()
        except TimeoutError as error:
            raise RewardFailedError(
                f"The event loop of the rewards did not answer for {self.step_time_limit + BLOCKED_AFTER:g} s: an async "
                "reward blocks it (time.sleep, requests, a long computation). Await what waits, or write it as def."
            ) from error
        except BaseException:
            future.cancel()  # Ctrl-C must not leave rewards running
            raise
        self.wait_seconds = time.perf_counter() - started
        return [self._outcome(r, of_reward) for r, of_reward in enumerate(results)]

    def _outcome(self, r: int, parts: list[Outcome | BaseException]) -> Outcome:
        for part in parts:
            if isinstance(part, BaseException):
                raise part
        whole = [part for part in parts if isinstance(part, Outcome)]
        return Outcome.merged(len(self.rows), zip(self.rows_of_calls[r], whole, strict=True))

    def _start(self, r: int, c: int) -> None:
        if self._tasks[r][c] is None:
            scored = self._score(self._calls.rewards[r], self.rows.take(self.rows_of_calls[r][c]))
            self._tasks[r][c] = task = asyncio.ensure_future(scored)
            ends_unheard(task)

    async def _finish(self) -> list[list[Outcome | BaseException]]:
        tasks = [task for of_reward in self._tasks for task in of_reward if task is not None]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self.step_time_limit)
        finally:
            for task in tasks:
                task.cancel()
        return [
            [self._result(task, len(rows)) for task, rows in zip(of_reward, rows_of_calls, strict=True)]
            for of_reward, rows_of_calls in zip(self._tasks, self.rows_of_calls, strict=True)
        ]

    def _result(self, task: asyncio.Task[Outcome] | None, count: int) -> Outcome | BaseException:
        assert task is not None  # every completion has arrived, so every call has started
        if task.done() and not task.cancelled():
            return task.exception() or task.result()
        late = Outcome.failed(
            count,
            f"not scored within model.reward_runtime.step_time_limit={self.step_time_limit:g} s of the last completion",
        )
        late.timeouts = 1
        return late

    async def _score(self, reward: BaseRewardFunction, rows: CallRows) -> Outcome:
        if not len(rows):  # all of them were left out
            return Outcome([])
        try:
            return await self._calls(reward, rows)
        except RewardContractError:
            raise
        except Exception as error:  # a user's reward may raise anything; the traceback is kept, counted and shown
            failed = Outcome.failed(len(rows), _shown(error))
            failed.timeouts = int(isinstance(error, CallTimeoutError))
        if len(rows) == 1 or not self._calls.repeats_by_row(
            reward
        ):  # one that compares completions must not see one alone
            return failed
        singles = await asyncio.gather(*(self._score(reward, rows.take([row])) for row in range(len(rows))))
        alone = Outcome.merged(len(rows), [([row], single) for row, single in enumerate(singles)])
        alone.timeouts += failed.timeouts
        return alone


def _shown(error: Exception) -> str:
    return str(error) if isinstance(error, CallTimeoutError) else traceback_of(error)
