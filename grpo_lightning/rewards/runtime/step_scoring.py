"""The scoring of one step: rewards are called as their completions arrive, and the table is read at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from grpo_lightning.concurrency.event_loop import ends_unheard
from grpo_lightning.concurrency.tracebacks import traceback_of
from grpo_lightning.messages import Conversation
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardContractError, asks_for
from grpo_lightning.rewards.runtime.call_rows import CallRows
from grpo_lightning.rewards.runtime.failures import RewardFailedError
from grpo_lightning.rewards.runtime.outcome import CallTimeoutError, Outcome

if TYPE_CHECKING:  # a reward's process imports this package, and does without torch
    from grpo_lightning.rewards.runtime.reward_calls import RewardCalls

BLOCKED_AFTER = 30.0
"""Seconds past the step's limit after which the event loop counts as blocked."""


@dataclass
class PlannedCall:
    """A call that starts once nothing is missing that it sees."""

    reward: BaseRewardFunction
    rows: list[int]
    needs_logprobs: bool
    """They come with the last completion of all."""
    missing: int
    """How many of its completions, and the logprobs."""
    task: asyncio.Task[Outcome] | None = None


class StepScoring:
    """The rewards of N completions, under way.

    Which rows each call sees is fixed from the start; only when a call starts depends on when completions arrive.

    Args:
        calls: Of R rewards.
        rows_of_calls: For each reward the rows of each of its calls.
        rows: All N, in which completions are still to come.
    """

    def __init__(self, calls: RewardCalls, rows_of_calls: Sequence[Sequence[Sequence[int]]], rows: CallRows) -> None:
        self._calls, self.step_time_limit = calls, calls.runtime.step_time_limit
        self.rows = rows
        self.wait_seconds = 0.0
        """How long ``outcomes`` had to wait: what the rewards added to the step."""
        self._added = [False] * len(rows)
        self._planned: list[list[PlannedCall]] = []  # of each reward
        self._calls_of_row: list[list[PlannedCall]] = [[] for _ in range(len(rows))]
        for reward, of_reward in zip(calls.rewards, rows_of_calls, strict=True):
            needs = asks_for(reward, "logprobs") and "logprobs" not in rows.columns
            self._planned.append([PlannedCall(reward, list(own), needs, len(own) + needs) for own in of_reward])
            for call in self._planned[-1]:
                for row in call.rows:
                    self._calls_of_row[row].append(call)

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
        for call in self._calls_of_row[row]:
            if conversation is not None and conversation.is_fault:
                call.rows.remove(row)
            self._one_less(call)

    def add_logprobs(self, logprobs: Sequence[Sequence[float]] | None) -> None:
        """The logprobs of all completions' tokens, or that there are none; from the thread that adds completions."""
        if logprobs is not None:
            self.rows = replace(self.rows, logprobs=[list(of_one) for of_one in logprobs])
        for call in chain.from_iterable(self._planned):
            if call.needs_logprobs:
                self._one_less(call)

    def _one_less(self, call: PlannedCall) -> None:
        call.missing -= 1
        if not call.missing:
            self._calls.loop.loop.call_soon_threadsafe(self._start, call)

    def missing(self) -> list[int]:
        """Completions that have not arrived yet."""
        return [row for row, added in enumerate(self._added) if not added]

    def asked(self) -> list[int]:
        """Completions that each reward is called with."""
        return [sum(len(call.rows) for call in of_reward) for of_reward in self._planned]

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
            found = future.result()
        except TimeoutError as error:
            raise RewardFailedError(
                f"The event loop of the rewards did not answer for {self.step_time_limit + BLOCKED_AFTER:g} s: an async "
                "reward blocks it (time.sleep, requests, a long computation). Await what waits, or write it as def."
            ) from error
        except BaseException:
            future.cancel()  # Ctrl-C must not leave rewards running
            raise
        self.wait_seconds = time.perf_counter() - started
        return found

    def _start(self, call: PlannedCall) -> None:
        call.task = asyncio.ensure_future(self._score(call.reward, self.rows.take(call.rows)))
        ends_unheard(call.task)

    async def _finish(self) -> list[Outcome]:
        tasks = [call.task for call in chain.from_iterable(self._planned) if call.task is not None]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self.step_time_limit)
        finally:
            for task in tasks:
                task.cancel()
        return [
            Outcome.merged(len(self.rows), [(call.rows, self._outcome(call)) for call in of_reward])
            for of_reward in self._planned
        ]

    def _outcome(self, call: PlannedCall) -> Outcome:
        assert call.task is not None  # every completion has arrived, so every call has started
        if call.task.done() and not call.task.cancelled():
            return call.task.result()
        limit = f"model.reward_runtime.step_time_limit={self.step_time_limit:g} s"
        return Outcome.failed(len(call.rows), f"not scored within {limit} of the last completion", timeouts=1)

    async def _score(self, reward: BaseRewardFunction, rows: CallRows) -> Outcome:
        if not len(rows):  # all of them were left out
            return Outcome([])
        try:
            return await self._calls(reward, rows)
        except RewardContractError:
            raise
        except Exception as error:  # a user's reward may raise anything; the traceback is kept, counted and shown
            late = isinstance(error, CallTimeoutError)
            failed = Outcome.failed(len(rows), str(error) if late else traceback_of(error), timeouts=int(late))
        if len(rows) == 1 or not self._calls.repeats_by_row(
            reward
        ):  # one that compares completions must not see one alone
            return failed
        singles = await asyncio.gather(*(self._score(reward, rows.take([row])) for row in range(len(rows))))
        alone = Outcome.merged(len(rows), [([row], single) for row, single in enumerate(singles)])
        alone.timeouts += failed.timeouts
        return alone
