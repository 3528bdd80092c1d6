"""Calls every reward on a batch of completions, side by side, and survives those that fail."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from grpo_lightning.messages import Conversation, Prompt
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardState
from grpo_lightning.rewards.runtime.call_guard import CallGuard
from grpo_lightning.rewards.runtime.call_plan import applicable_rows, check_calling, rows_of_calls
from grpo_lightning.rewards.runtime.call_rows import CallRows
from grpo_lightning.rewards.runtime.failures import FailureWatch
from grpo_lightning.rewards.runtime.kept_state import KeptState
from grpo_lightning.rewards.runtime.outcome import Outcome, lists_of
from grpo_lightning.rewards.runtime.reward_calls import RewardCalls
from grpo_lightning.rewards.runtime.reward_table import RewardTable
from grpo_lightning.rewards.runtime.settings import RewardRuntime
from grpo_lightning.rewards.runtime.step_scoring import BLOCKED_AFTER, StepScoring

log = logging.getLogger(__name__)


class RewardRunner:
    """Scores batches with a list of rewards.

    Synchronous rewards run in threads or processes, asynchronous ones together on one event loop, all as soon as the
    completions that they need have arrived. Those that work in the main thread only (time limits by signals) run there,
    in ``finish``. A reward of scope completion that raises or takes too long is called again with one completion at a
    time, where it had several; those that fail again get None, are counted and shown. A failed call of scope group or
    batch is None for all of its completions, as it may compare them. Breaking the contract (wrong count, infinity,
    missing column) is an error at once.

    Args:
        rewards: With unique names, as ``resolve_rewards`` returns them.
        runtime: Fields of RewardRuntime.
    """

    def __init__(self, rewards: Sequence[BaseRewardFunction], **runtime: Any) -> None:
        names = [reward.name for reward in rewards]
        if not rewards or len(set(names)) < len(names):
            raise ValueError(f"RewardRunner needs at least one reward, each with its own name; got {names}.")
        for reward in rewards:
            check_calling(reward)
        self.rewards = list(rewards)
        self.runtime = RewardRuntime(**runtime)
        self.kept_state = KeptState(self.rewards)
        """What they remember between calls, for checkpoints."""
        self._calls = RewardCalls(self.rewards, self.runtime)
        self._watches = [
            FailureWatch(reward.name, self.runtime.max_error_share, fails_whole=not self._calls.repeats_by_row(reward))
            for reward in self.rewards
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {"rewards": self.rewards, "runtime": asdict(self.runtime)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["rewards"], **state["runtime"])  # type: ignore[misc]  # threads and processes do not travel

    @property
    def guard(self) -> CallGuard:
        """Around each call in this process; knows the rank's device."""
        return self._calls.guard

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names, in the order of the table's columns."""
        return tuple(reward.name for reward in self.rewards)

    @property
    def longest_wait(self) -> float:
        """Seconds that a step may wait for rewards after its last completion."""
        return self.runtime.step_time_limit + BLOCKED_AFTER

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuses data that lacks a column which a reward needs; where rows choose their rewards, each row will tell.

        Args:
            columns: Names of the dataset's.

        Raises:
            RewardContractError: Naming the reward and the column.
        """
        if self.runtime.reward_column not in columns:
            for reward in self.rewards:
                reward.check_columns(columns)

    def start(
        self,
        prompts: Sequence[Prompt],
        group: Sequence[int],
        columns: Mapping[str, Sequence[Any]] | None = None,
        trainer_state: RewardState | None = None,
    ) -> StepScoring:
        """Takes N completions as they arrive; its outcomes go to ``finish``.

        Args:
            prompts: N prompts: that of each completion, so each G times.
            group: N integers: completions with the same one belong to the same prompt.
            columns: Dataset columns, N entries each.
            trainer_state: Where training stands.

        Raises:
            RewardContractError: If the columns break the contract.
        """
        rows = CallRows.to_come(prompts, group, columns or {}, trainer_state or RewardState())
        applicable = applicable_rows(self.names, rows.columns, self.runtime.reward_column, len(rows))
        calls = [rows_of_calls(reward, own, group) for reward, own in zip(self.rewards, applicable, strict=True)]
        return StepScoring(self._calls, calls, rows)

    def finish(self, scoring: StepScoring) -> RewardTable:
        """The table of a step whose completions have all arrived.

        Raises:
            RewardContractError: If a reward or the data break the contract.
            RewardFailedError: If a reward fails on everything, or on more than ``max_error_share``.
        """
        try:
            outcomes = scoring.outcomes()
        finally:
            self.guard.state.settle()
        self._watch(scoring, outcomes)
        table = self._table(scoring, outcomes)
        _warn_of_unscored(table, scoring.rows)
        return table

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        completions_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]] | None = None,
        trainer_state: RewardState | None = None,
        group: Sequence[int] | None = None,
        logprobs: Sequence[Sequence[float]] | None = None,
        conversations: Sequence[Conversation] = (),
    ) -> RewardTable:
        """The rewards of N completions that are there already; ``start``, ``add`` and ``finish`` in one.

        Args:
            prompts: N prompts: that of each completion, so each G times.
            completions: N completions.
            completions_ids: N lists of token ids.
            columns: Dataset columns, N entries each.
            trainer_state: Where training stands.
            group: N integers, the prompt of each completion; by default they all belong together.
            logprobs: N lists with the logprob of each token (nats), for rewards that ask for them.
            conversations: N of them, of rollouts of several turns.

        Raises:
            RewardContractError: If a reward or the data break the contract.
            RewardFailedError: If a reward fails on everything, or on more than ``max_error_share``.
        """
        lists = {name: list(values) for name, values in (columns or {}).items()}
        CallRows(list(prompts), list(completions), list(map(list, completions_ids)), lists, RewardState())  # checked
        scoring = self.start(prompts, [0] * len(completions) if group is None else group, lists, trainer_state)
        for row, (completion, ids) in enumerate(zip(completions, completions_ids, strict=True)):
            scoring.add(row, completion, ids, conversations[row] if conversations else None)
        scoring.add_logprobs(logprobs)
        return self.finish(scoring)

    def close(self) -> None:
        """Releases what the rewards hold, and the event loop. The runner may be used again afterwards."""
        self._calls.close()

    def _watch(self, scoring: StepScoring, outcomes: list[Outcome]) -> None:
        for watch, outcome, asked in zip(self._watches, outcomes, scoring.asked(), strict=True):
            if not asked:
                continue
            row = min(outcome.errors, default=0)
            text = outcome.errors.get(row, "")
            first = text and f"on completion {row}, of the prompt {str(scoring.rows.prompts[row])[:200]!r}:\n{text}"
            if watch.record(asked, len(outcome.errors), outcome.raised, first):
                log.warning(
                    "Reward '%s' failed on %d of %d completions, which count as None. This is shown once, and counted "
                    "in rewards/%s/errors. The first failure was %s",
                    *(watch.name, len(outcome.errors), asked, watch.name, first),
                )

    def _table(self, scoring: StepScoring, outcomes: list[Outcome]) -> RewardTable:
        extra: dict[str, list[Any]] = {}
        logged: dict[str, list[float]] = {}
        metrics: dict[str, float] = {"time/rewards/wait": scoring.wait_seconds}
        for name, outcome in zip(self.names, outcomes, strict=True):
            seconds = outcome.seconds or [0.0]
            metrics[f"time/rewards/{name}"] = sum(seconds) / len(seconds)
            metrics[f"time/rewards/{name}/max"] = max(seconds)
            metrics[f"rewards/{name}/errors"] = float(len(outcome.errors))
            metrics[f"rewards/{name}/timeouts"] = float(outcome.timeouts)
            for column, entries in outcome.extra.items():
                extra[f"{name}/{column}" if column in extra else column] = entries
            for metric, numbers in outcome.metrics.items():
                logged.setdefault(metric, []).extend(numbers)
        metrics.update({metric: sum(numbers) / len(numbers) for metric, numbers in logged.items()})
        by_reward = torch.tensor([outcome.rewards for outcome in outcomes], dtype=torch.float64)  # (R, N)
        weights = torch.tensor([reward.weight for reward in self.rewards], dtype=torch.float64)
        rewards_per_func = by_reward.T.reshape(len(scoring.rows), len(self.rewards))
        return RewardTable(rewards_per_func, self.names, weights, extra, metrics, lists_of(self.names, outcomes))


def _warn_of_unscored(table: RewardTable, rows: CallRows) -> None:
    unscored = table.values.isnan().all(dim=1).nonzero().flatten().tolist()
    if unscored:
        first = unscored[0]
        columns = {name: str(values[first])[:80] for name, values in rows.columns.items()}
        log.warning(
            "No reward applies to %d of %d completions, which are left out of the step. The first has the prompt %r and "
            "the columns %r.",
            *(len(unscored), len(rows), str(rows.prompts[first])[:200], columns),
        )
