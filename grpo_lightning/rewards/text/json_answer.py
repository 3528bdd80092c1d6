"""The answer in the JSON object that a text ends with: ``{"reasoning": "3 * 4", "answer": 12}``."""

from __future__ import annotations

import json

KEYS = ("answer", "final_answer", "result", "value", "solution")
"""Of the answer, the first one found; letters' case, spaces and dashes do not count."""
MAX_OBJECT = 5_000
"""Characters of an object."""
MAX_NESTED = 20
"""Opening braces that are tried, from the last one."""
_FENCE = " \t\r\n`"


def json_answer(text: str) -> str | None:
    """What the last object of the text has as its answer; None where the text does not end with such an object.

    Example:
        >>> json_answer('{"reasoning": "3 * 4", "Final Answer": 12}'), json_answer("{12}"), json_answer('{"steps": 3}')
        ('12', None, None)
    """
    text = text.rstrip(_FENCE)[-MAX_OBJECT:]
    start = len(text) if text.endswith("}") else 0
    for _ in range(MAX_NESTED):
        start = text.rfind("{", 0, start)
        if start < 0:
            break
        try:
            found = json.loads(text[start:], parse_float=str, parse_int=str, strict=False)
        except (ValueError, RecursionError):
            continue
        return _answer(found) if isinstance(found, dict) else None
    return None


def _answer(found: dict[str, object]) -> str | None:
    plain = {key.strip().lower().replace(" ", "_").replace("-", "_"): value for key, value in found.items()}
    given = next((plain[key] for key in KEYS if plain.get(key)), None)
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        given = ", ".join(given)
    return given if isinstance(given, str) else None
