"""The reward that an environment gives itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardContractError, RewardValues
from grpo_lightning.rewards.registry import register_reward


@register_reward("environment")
@dataclass
class EnvironmentReward(BaseRewardFunction):
    """What ``model.environment`` gives a rollout: its ``get_reward()``, else the sum of what its ``step`` gave.

    Args:
        per_turn: One value for each turn: what it gave there, ``get_reward()`` added to the last. Advantages then tell turns
            apart (docs/losses.md, rewards of tokens and turns).

    Raises:
        RewardContractError: If there is no environment.

    Example:
        >>> EnvironmentReward()(["p"], ["c"], turn_rewards=[[1.0, 2.0]], final_rewards=[None])
        [3.0]
        >>> EnvironmentReward(per_turn=True)(["p"], ["c"], turn_rewards=[[1.0, 2.0]], final_rewards=[5.0])
        [[1.0, 7.0]]
    """

    per_turn: bool = False

    scope = "completion"
    batched = True

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        turn_rewards: Sequence[Sequence[float] | None] = (),
        final_rewards: Sequence[float | None] = (),
        **columns: Any,
    ) -> RewardValues:
        """One number, or one list, for each completion."""
        if not turn_rewards:
            raise RewardContractError(
                "The reward 'environment' is what model.environment gives, and there is none. Set model.environment, or "
                "leave the reward out."
            )
        return [
            self._value(list(rewards or []), final) for rewards, final in zip(turn_rewards, final_rewards, strict=True)
        ]

    def _value(self, rewards: list[float], final: float | None) -> float | list[float]:
        if self.per_turn and rewards:
            return [*rewards[:-1], rewards[-1] + (final or 0.0)]
        return sum(rewards) if final is None else final
