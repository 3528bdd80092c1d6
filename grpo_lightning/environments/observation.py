"""From what an environment says to messages."""

from __future__ import annotations

from typing import Any

from grpo_lightning.environments.episode import EnvironmentFault
from grpo_lightning.environments.output import cut
from grpo_lightning.messages import Message


def as_messages(observation: Any, name: str, limit: int) -> list[Message]:
    """Messages of what ``reset`` or ``step`` returned, each cut at ``limit`` characters.

    Args:
        observation: None, text, one message, or a list of messages.
        name: Of the method, for the error.
        limit: In characters.

    Raises:
        EnvironmentFault: If it is something else.

    Example:
        >>> as_messages("You won.", "Game.step", 100)
        [{'role': 'user', 'content': 'You won.'}]
    """
    if observation is None:
        return []
    if isinstance(observation, str):
        return [{"role": "user", "content": cut(observation, limit)}]
    entries = [observation] if isinstance(observation, dict) else observation
    if not isinstance(entries, list | tuple) or not all(_is_message(entry) for entry in entries):
        raise EnvironmentFault(
            f"{name} returned {observation!r:.200} ({type(observation).__name__}). Return text, messages "
            "({'role': ..., 'content': text}), or None."
        )
    return [{**entry, "content": cut(entry["content"], limit)} for entry in entries]


def _is_message(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("role"), str) and isinstance(entry.get("content"), str)
