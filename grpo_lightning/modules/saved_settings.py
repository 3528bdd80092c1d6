"""The settings that a checkpoint keeps for ``load_from_checkpoint``: those that are plain values."""

from __future__ import annotations

from typing import Any

PLAIN = (str, int, float, bool, type(None))


def plain_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that a file may hold: numbers, texts, and lists and dictionaries of them.

    Objects (a generator, a reward that is a function, an optimizer) are left out: whoever loads the checkpoint brings them.

    Example:
        >>> plain_settings({"beta": 0.04, "rewards": ["accuracy"], "optimizer": print})
        {'beta': 0.04, 'rewards': ['accuracy']}
    """
    return {name: value for name, value in given.items() if is_plain(value)}


def is_plain(value: Any) -> bool:
    """Whether it is made of plain values alone."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, PLAIN)
