"""Text as files and terminals can hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def valid_text(text: str) -> str:
    r"""The text with each half of a surrogate pair that stands alone written out, since UTF-8 has no bytes for it.

    Models, rewards and data sets produce such halves: cut emoji, JSON with ``\ud83d``. Of JSON it makes JSON again: the
    escape is the one that JSON has for it.

    Example:
        >>> valid_text("caf\u00e9 " + chr(0xD83D)) == "caf\u00e9 \\ud83d"
        True
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def json_text(values: Mapping[str, Any]) -> str:
    r"""The values as one JSON object in valid text; what JSON has no form for (NaN, a tuple as a key) as its text.

    Example:
        >>> json_text({"seen": [1, 2], "pairs": {(1, 2): "x"}})
        '{"seen": [1, 2], "pairs": "{(1, 2): \'x\'}"}'
    """
    try:
        text = _dumped(values)
    except (TypeError, ValueError, RecursionError):
        text = _dumped({str(name): value if _has_form(value) else _text(value) for name, value in values.items()})
    return valid_text(text)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_text)


def _has_form(value: Any) -> bool:
    try:
        _dumped(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # of a class that a reward brings
        return f"<{type(value).__name__}>"


def in_words(error: BaseException) -> str:
    """The message of an error; where text cannot be written as UTF-8, which one, and what to do about it."""
    if not isinstance(error, UnicodeEncodeError):
        return str(error)
    text = valid_text(error.object[max(0, error.start - 80) : error.end + 20])
    return (
        f"{text.strip()} cannot be written into the run's files: it holds bytes that are not UTF-8, or half a character. Rename "
        "the file or folder, or give the setting whole characters."
    )
