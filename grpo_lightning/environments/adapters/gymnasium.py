"""Gymnasium's environments as text: what the policy writes is the action."""

from __future__ import annotations

import re
from typing import Any

import gymnasium

from grpo_lightning.environments.episode import EnvironmentContractError


class GymnasiumText:
    """An environment that ``gymnasium.make`` makes. The row's column ``seed`` chooses the episode.

    Args:
        id: Registered name; ``module:name`` imports the module first, which registers it.
        settings: Keyword arguments of the environment.

    Raises:
        EnvironmentContractError: If its actions are neither text nor a number that text can name.
    """

    def __init__(self, id: str, settings: dict[str, Any] | None = None) -> None:
        self.environment: Any = gymnasium.make(id, **(settings or {}))
        space = self.environment.action_space
        if not isinstance(space, gymnasium.spaces.Text | gymnasium.spaces.Discrete):
            raise EnvironmentContractError(
                f"GymnasiumText: the actions of {id} are {space}. Text and Discrete can be written by a model; wrap the "
                "environment in a gymnasium.ActionWrapper that takes text."
            )
        self.is_text = isinstance(space, gymnasium.spaces.Text)

    def reset(self, seed: int = 0) -> str:
        """The first observation of the episode with this seed."""
        return str(self.environment.reset(seed=seed)[0])

    def step(self, text: str) -> tuple[str, float, bool]:
        """The next observation. Of a ``Discrete`` action the last whole number in the text is taken."""
        action: Any = text
        if not self.is_text:
            space = self.environment.action_space
            numbers = re.findall(r"-?\d+", text)
            action = int(numbers[-1]) if numbers and len(numbers[-1]) < 10 else None
            if action is None or not space.contains(action):
                return f"Write a number from {space.start} to {space.start + space.n - 1}.", 0.0, False
        observation, reward, is_terminated, is_truncated, _ = self.environment.step(action)
        return str(observation), float(reward), bool(is_terminated or is_truncated)

    def close(self) -> None:
        """Closes the environment."""
        self.environment.close()
