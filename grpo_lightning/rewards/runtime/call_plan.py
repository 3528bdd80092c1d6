"""Which completions a reward is called with: fixed before the first one arrives, so that timing decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_lightning.rewards.base import ISOLATIONS, SCOPES, BaseRewardFunction, RewardContractError
from grpo_lightning.rewards.runtime.kept_state import keeps_state


def rows_of_calls(reward: BaseRewardFunction, rows: Sequence[int], group: Sequence[int]) -> list[list[int]]:
    """The rows of each call, in order.

    Args:
        reward: Its ``scope`` and ``batched`` decide.
        rows: Completions that the reward applies to, ascending.
        group: The prompt of every completion of the step.

    Example:
        >>> from grpo_lightning.rewards import FormatReward, FunctionReward
        >>> rows_of_calls(FormatReward(), rows=[0, 1, 2, 3], group=[0, 0, 1, 1])
        [[0, 1], [2, 3]]
        >>> rows_of_calls(FunctionReward(function=print), rows=[0, 1, 2, 3], group=[0, 0, 1, 1])
        [[0, 1, 2, 3]]
    """
    if not rows:
        return []
    if reward.scope == "batch":
        return [list(rows)]
    if reward.scope == "completion" and not reward.batched:
        return [[row] for row in rows]
    by_group: dict[int, list[int]] = {}
    for row in rows:
        by_group.setdefault(group[row], []).append(row)
    return list(by_group.values())


def check_calling(reward: BaseRewardFunction) -> None:
    """Refuses settings that say something impossible about how a reward may be called.

    Raises:
        ValueError: Naming the reward and the setting.
    """
    for setting, known in (("scope", SCOPES), ("isolation", ISOLATIONS)):
        value = getattr(reward, setting)
        if value not in known:
            raise ValueError(f"Reward '{reward.name}' has {setting}={value!r}. Choose one of {', '.join(known)}.")
    if reward.concurrency < 0 or reward.call_time_limit < 0:
        raise ValueError(
            f"Reward '{reward.name}' has concurrency={reward.concurrency}, call_time_limit={reward.call_time_limit}: "
            "both must be 0 (the runner's) or more."
        )
    if reward.batched and reward.scope != "completion":
        raise ValueError(
            f"Reward '{reward.name}' has batched, which has no effect with scope={reward.scope!r}: a group or a batch "
            "is one call anyway. Remove it, or set scope: completion."
        )
    if reward.isolation == "main" and reward.is_async:
        raise ValueError(
            f"Reward '{reward.name}' has isolation='main', which has no effect on an async def: it runs on the rewards' event "
            "loop, in a thread of its own. Write the reward as a plain def, or remove isolation."
        )

    if reward.isolation == "process" and keeps_state(reward):
        raise ValueError(
            f"Reward '{reward.name}' has state_dict, and isolation='process', where what it remembers stays in processes that come "
            "and go. Remove one of them."
        )


def applicable_rows(
    names: Sequence[str], columns: Mapping[str, Sequence[Any]], reward_column: str | None, count: int
) -> list[list[int]]:
    """For each reward the completions that it is called with: those whose row names it, or names none.

    Args:
        names: Of the rewards.
        columns: Of the data, ``count`` entries each.
        reward_column: Column in which a row names its rewards (``"accuracy,format"`` or a list); None for no such
            column.
        count: Completions.

    Raises:
        RewardContractError: If a row names a reward that is not configured.

    Example:
        >>> columns = {"rewards": ["code", None, ["code", "format"]]}
        >>> applicable_rows(["code", "format"], columns, "rewards", 3)
        [[0, 1, 2], [1, 2]]
    """
    if reward_column is None or reward_column not in columns:
        return [list(range(count)) for _ in names]
    named = [_named(value, row, reward_column) for row, value in enumerate(columns[reward_column])]
    for row, wanted in enumerate(named):
        unknown = sorted((wanted or set()) - set(names))
        if unknown:
            raise RewardContractError(
                f"Completion {row} comes from a row whose column {reward_column!r} names the reward "
                f"{', '.join(unknown)}, but model.rewards has {', '.join(names)}. Add it there, or set "
                "model.reward_runtime.reward_column to the column that names rewards, null for none."
            )
    return [[row for row, wanted in enumerate(named) if wanted is None or name in wanted] for name in names]


def _named(value: Any, row: int, column: str) -> set[str] | None:
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise RewardContractError(
            f"Completion {row} comes from a row whose column {column!r} is {value!r:.80}: expected names of rewards. "
            "If the column means something else, set model.reward_runtime.reward_column to null."
        )
    return {part.strip() for part in parts if part.strip()} or None
