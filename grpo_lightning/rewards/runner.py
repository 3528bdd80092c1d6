"""Calls every reward on a batch of completions, side by side, and survives those that fail."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardContractError, RewardState
from grpo_lightning.rewards.call import Outcome, Rows, call_reward
from grpo_lightning.rewards.event_loop import EventLoopThread
from grpo_lightning.rewards.failures import FailureWatch
from grpo_lightning.rewards.table import RewardTable
from grpo_lightning.types import Prompt

log = logging.getLogger(__name__)


class RewardRunner:
    """Scores batches with a list of rewards.

    Synchronous rewards run in threads, asynchronous ones together on one event loop. A reward that raises is called
    again with one completion at a time: those that raise again get None, are counted and shown. Breaking the contract
    (wrong count, NaN, missing column) is an error at once.

    Args:
        rewards: With unique names, as ``resolve_rewards`` returns them.
        max_workers: Synchronous rewards that run at the same time.
        max_error_share: The run stops when a reward fails on more than this share, in (0, 1], of the latest
            completions (at least 64 of them), or has never done anything but raise.
    """

    def __init__(
        self, rewards: Sequence[BaseRewardFunction], max_workers: int = 8, max_error_share: float = 0.5
    ) -> None:
        names = [reward.name for reward in rewards]
        if not rewards or len(set(names)) < len(names):
            raise ValueError(f"RewardRunner needs at least one reward, each with its own name; got {names}.")
        if max_workers < 1 or not 0 < max_error_share <= 1:
            raise ValueError(
                f"max_workers={max_workers} must be 1 or more, max_error_share={max_error_share} above 0, at most 1."
            )
        self.rewards = list(rewards)
        self.max_workers = max_workers
        self._watches = [FailureWatch(name, max_error_share) for name in names]
        self._loop = EventLoopThread()

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names, in the order of the table's columns."""
        return tuple(reward.name for reward in self.rewards)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        completions_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]] | None = None,
        trainer_state: RewardState | None = None,
    ) -> RewardTable:
        """The rewards of N completions.

        Args:
            prompts: N prompts: that of each completion, so each G times.
            completions: N completions.
            completions_ids: N lists of token ids.
            columns: Dataset columns, N entries each.
            trainer_state: Where training stands.

        Raises:
            RewardContractError: If a reward or the data break the contract.
            RewardFailedError: If a reward fails on everything, or on more than ``max_error_share``.
        """
        ids = [list(tokens) for tokens in completions_ids]
        lists = {name: list(values) for name, values in (columns or {}).items()}
        rows = Rows(list(prompts), list(completions), ids, lists, trainer_state or RewardState())
        if not len(rows):
            return self._table(rows, [Outcome([]) for _ in self.rewards])
        outcomes = self._loop.run(self._score_all(rows))
        self._watch(rows, outcomes)
        table = self._table(rows, outcomes)
        _warn_of_unscored(table, rows)
        return table

    def close(self) -> None:
        """Releases what the rewards hold, and the event loop. The runner may be used again afterwards."""
        for reward in self.rewards:
            reward.close()
        self._loop.close()

    async def _score_all(self, rows: Rows) -> list[Outcome]:
        slots = asyncio.Semaphore(self.max_workers)
        calls = [self._score_with(reward, rows, slots) for reward in self.rewards]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:  # the first in the order of the rewards, whichever came first in time
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, Outcome)]

    async def _score_with(self, reward: BaseRewardFunction, rows: Rows, slots: asyncio.Semaphore) -> Outcome:
        start = time.perf_counter()
        try:
            outcome = await call_reward(reward, rows, slots)
        except RewardContractError:
            raise
        except Exception:  # a user's reward may raise anything; the traceback is kept, counted and shown
            outcome = Outcome([math.nan], errors={0: traceback.format_exc()}, raised=1)
            if len(rows) > 1:  # so that one bad row costs one row
                singles = [self._score_with(reward, rows.only(row), slots) for row in range(len(rows))]
                outcome = Outcome.of_rows(await asyncio.gather(*singles))
        outcome.seconds = time.perf_counter() - start
        return outcome

    def _watch(self, rows: Rows, outcomes: list[Outcome]) -> None:
        for watch, outcome in zip(self._watches, outcomes, strict=True):
            row, text = next(iter(outcome.errors.items()), (0, ""))
            first = f"on completion {row}, of the prompt {str(rows.prompts[row])[:200]!r}:\n{text}" if text else ""
            if watch.record(len(rows), len(outcome.errors), outcome.raised, first):
                log.warning(
                    "Reward '%s' failed on %d of %d completions, which count as None. This is shown once, and counted "
                    "in rewards/%s/errors. The first failure was %s",
                    *(watch.name, len(outcome.errors), len(rows), watch.name, first),
                )

    def _table(self, rows: Rows, outcomes: list[Outcome]) -> RewardTable:
        extra: dict[str, list[Any]] = {}
        logged: dict[str, list[float]] = {}
        metrics: dict[str, float] = {}
        for name, outcome in zip(self.names, outcomes, strict=True):
            metrics[f"rewards/{name}/seconds"] = outcome.seconds
            metrics[f"rewards/{name}/errors"] = float(len(outcome.errors))
            for column, entries in outcome.extra.items():
                extra[f"{name}/{column}" if column in extra else column] = entries
            for metric, numbers in outcome.metrics.items():
                logged.setdefault(metric, []).extend(numbers)
        metrics.update({metric: sum(numbers) / len(numbers) for metric, numbers in logged.items()})
        by_reward = torch.tensor([outcome.values for outcome in outcomes], dtype=torch.float64)  # (R, N)
        weights = torch.tensor([reward.weight for reward in self.rewards], dtype=torch.float64)
        return RewardTable(by_reward.T.reshape(len(rows), len(self.rewards)), self.names, weights, extra, metrics)


def _warn_of_unscored(table: RewardTable, rows: Rows) -> None:
    unscored = table.values.isnan().all(dim=1).nonzero().flatten().tolist()
    if unscored:
        first = unscored[0]
        columns = {name: str(values[first])[:80] for name, values in rows.columns.items()}
        log.warning(
            "No reward applies to %d of %d completions, which are left out of the step. The first has the prompt %r and "
            "the columns %r.",
            *(len(unscored), len(rows), str(rows.prompts[first])[:200], columns),
        )
