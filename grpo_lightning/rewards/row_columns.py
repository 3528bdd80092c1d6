"""The column that a reward reads of each row: the one that a setting names, or one of those that datasets usually have."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from grpo_lightning.rewards.base import RESERVED, BaseRewardFunction, RewardContractError


def column_of(
    reward: BaseRewardFunction, setting: str, what: str, usual: Sequence[str], columns: Collection[str]
) -> str:
    """The column that holds it.

    Args:
        reward: Whose setting it is.
        setting: Names the column (``answer_key``); None for the first of the usual ones.
        what: It holds, for the error.
        usual: Names that datasets have for it.
        columns: Of the data; what else a reward is called with may be among them.

    Raises:
        RewardContractError: If there is none.
    """
    own = getattr(reward, setting)
    wanted = (own,) if own else usual
    for name in wanted:
        if name in columns:
            return name
    found = ", ".join(sorted(set(columns) - RESERVED)) or "no further columns"
    raise RewardContractError(
        f"Reward '{reward.name}' finds no {what}: looked for the column {' or '.join(wanted)}, the data has {found}. "
        f"Set {setting} in the reward's init_args to the column that holds the {what}."
    )


def require_column(reward: BaseRewardFunction, setting: str, columns: Collection[str]) -> str | None:
    """The column that a setting (``schema_key``) names, or None where it names none.

    Raises:
        RewardContractError: If the data has no such column.
    """
    column: str | None = getattr(reward, setting)
    if column is not None and column not in columns:
        raise RewardContractError(f"Reward '{reward.name}' needs the column {setting}={column!r}.")
    return column
