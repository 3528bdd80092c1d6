"""OpenEnv's servers: an episode is a session of its own, over a WebSocket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openenv.core import GenericEnvClient


class OpenEnv:
    """An environment on an OpenEnv server. The policy's text is one field of the action.

    For actions with more than one field write a class with a client of OpenEnv's in it, whose methods are tools; TRL's
    examples run as they are.

    Args:
        base_url: Of the server. It must allow as many sessions as there are rollouts at once.
        action: Field of the action that takes the text.
        observation: Field of the observation that the policy reads.
        columns: Column of the row that the environment's reset takes, or several.
        message_timeout_s: Seconds for an answer of the server.
    """

    def __init__(
        self,
        base_url: str,
        action: str = "message",
        observation: str = "message",
        columns: str | Sequence[str] = "seed",
        message_timeout_s: float = 60.0,
    ) -> None:
        self.client = GenericEnvClient(base_url=base_url, message_timeout_s=message_timeout_s)
        self.action, self.observation = action, observation
        self.columns = [columns] if isinstance(columns, str) else columns

    async def reset(self, **row: Any) -> str:
        """The first observation."""
        result = await self.client.reset(**{column: row[column] for column in self.columns if column in row})
        return self._text(result)

    async def step(self, text: str) -> tuple[str, float, bool]:
        """The answer to a turn."""
        result = await self.client.step({self.action: text})
        return self._text(result), float(result.reward or 0.0), bool(result.done)

    async def close(self) -> None:
        """Ends the session."""
        await self.client.close()

    def _text(self, result: Any) -> str:
        if self.observation not in result.observation:
            raise KeyError(
                f"The observation has {', '.join(result.observation)}; model.environment's observation="
                f"{self.observation!r} is not among them."
            )
        return str(result.observation[self.observation])
