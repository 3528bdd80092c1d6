"""From what an environment says to messages, and behind the prompt of its rollout."""

from __future__ import annotations

from typing import Any

from grpo_lightning.environments.episode import EnvironmentFault
from grpo_lightning.environments.output import cut
from grpo_lightning.messages import Message


def behind_prompt(prompt: list[Message], observation: list[Message]) -> list[Message]:
    """The conversation that the policy answers: what a reset said, behind the prompt, whose messages stay untouched.

    A first message of the user continues the text of a last one, without anything between them: TRL does so, and chat
    templates expect turns that alternate.

    Example:
        >>> behind_prompt([{"role": "user", "content": "Play. "}], [{"role": "user", "content": "Guess 1-9."}])
        [{'role': 'user', 'content': 'Play. Guess 1-9.'}]
    """
    if not prompt or not observation or prompt[-1]["role"] != "user" or observation[0]["role"] != "user":
        return [*prompt, *observation]
    joined = {**prompt[-1], "content": prompt[-1]["content"] + observation[0]["content"]}
    return [*prompt[:-1], joined, *observation[1:]]


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
