"""The small files of a run directory, which may have been cut off, or be someone else's: what cannot be read is not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

MAX_DIGITS = 15
"""Of a whole number that every reader of JSON holds exactly."""


def read_text(path: Path) -> str:
    """A file's text; empty where there is none, or a folder in its place."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """An object of finite numbers (None for others); empty where the file holds something else."""
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=lambda name: None,  # NaN and Infinity, which are not JSON
            parse_float=lambda digits: value if math.isfinite(value := float(digits)) else None,
            parse_int=lambda digits: int(digits) if len(digits) <= MAX_DIGITS else None,
        )
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_settings(text: str) -> dict[str, str]:
    """A config's flat settings; empty where the text is something else."""
    try:
        content = yaml.safe_load(text)
        return flat_settings(content) if isinstance(content, dict) else {}
    # What PyYAML raises of tags that do not fit their values is left to Python; an alias may lead to what it lies in.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def flat_settings(config: dict[Any, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names; lists stay in one piece.

    Example:
        >>> flat_settings({"model": {"beta": 0.0, "rewards": ["accuracy"]}})
        {'model.beta': '0.0', 'model.rewards': '["accuracy"]'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat
