"""What tools and environments say, as text that is not longer than the model should read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from grpo_lightning.environments.episode import EnvironmentContractError, EnvironmentFault
from grpo_lightning.messages import Message


def cut(text: str, limit: int) -> str:
    r"""The text, or its first ``limit`` characters and a line that says how much is missing.

    Halves of surrogate pairs, which no tokenizer and no file takes, become question marks.

    Example:
        >>> cut("abcdef", 4)
        'abcd\n[cut: the first 4 of 6 characters]'
        >>> cut("abcd", 4)
        'abcd'
    """
    kept = text[:limit].encode("utf-8", "replace").decode("utf-8")
    return kept if len(text) <= limit else f"{kept}\n[cut: the first {limit} of {len(text)} characters]"


def as_text(result: Any, limit: int) -> str:
    r"""What a tool returned as the model reads it, ``str(result)`` as in TRL, cut at ``limit`` characters.

    Blocks of text (``[{"type": "text", "text": ...}]``) are joined.

    Raises:
        EnvironmentContractError: For what has yet to be asked for its values, such as a generator: its text would be
            ``<generator object ...>``.

    Example:
        >>> as_text({"sum": 3}, 100), as_text([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], 100)
        ("{'sum': 3}", 'a\nb')
    """
    if isinstance(result, list) and result and all(_is_text_block(block) for block in result):
        result = "\n".join(block["text"] for block in result)
    if isinstance(result, Iterator | AsyncIterator):
        raise EnvironmentContractError(
            f"A tool returned a {type(result).__name__}, which is no text. Return a string or a list, such as "
            "'\\n'.join(parts), in place of yield."
        )
    return cut(result if isinstance(result, str) else str(result), limit)


def _is_text_block(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)


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
