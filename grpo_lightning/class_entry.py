"""The form in which a config names a class or function with its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = frozenset({"class_path", "init_args"})
"""Of such an entry; jsonargparse's own have ``dict_kwargs`` too."""


def class_path_of(entry: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """What an entry names, and its settings as they stand there, {} for none; None where its keys are others.

    Example:
        >>> class_path_of({"class_path": "accuracy", "init_args": {"mode": "exact"}})
        ('accuracy', {'mode': 'exact'})
        >>> class_path_of({"class_path": "accuracy"})
        ('accuracy', {})
        >>> class_path_of({"class_path": "accuracy", "mode": "exact"}) is None
        True
    """
    if "class_path" not in entry or set(entry) - KEYS:
        return None
    return entry["class_path"], entry.get("init_args") or {}
