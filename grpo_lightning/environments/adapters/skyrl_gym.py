"""Environments of SkyRL-Gym, which answer turns of text with messages and a reward each."""

from __future__ import annotations

from typing import Any

import skyrl_gym

from grpo_lightning.messages import Message


class SkyRLGym:
    """An environment that ``skyrl_gym.make`` makes anew for each row; the row's columns are its ``extras``.

    Args:
        id: Registered name, such as ``gsm8k_multi_turn``.
        env_config: What the environment takes under this name.
    """

    def __init__(self, id: str, env_config: dict[str, Any] | None = None) -> None:
        self.id, self.env_config = id, env_config or {}
        self.environment: Any = None

    def reset(self, prompt: list[Message] | str | None = None, **row: Any) -> list[Message]:
        """What ``init`` adds behind the prompt.

        Raises:
            ValueError: If it changes the prompt itself, which has been sampled from.
        """
        self.close()
        self.environment = skyrl_gym.make(self.id, env_config=self.env_config, extras=row)
        given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or [])
        messages, _ = self.environment.init(given)
        if messages[: len(given)] != given:
            raise ValueError(f"SkyRLGym: init of {self.id} changes the prompt. Make the change in the data instead.")
        return list(messages[len(given) :])

    def step(self, text: str) -> tuple[list[Message], float, bool]:
        """Its answer."""
        output = self.environment.step(text)
        return list(output["observations"]), float(output["reward"]), bool(output["done"])

    def close(self) -> None:
        """Closes the environment of the last row."""
        if self.environment is not None:
            self.environment.close()
