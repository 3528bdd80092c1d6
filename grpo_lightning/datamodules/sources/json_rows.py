"""Rows of JSON and JSON Lines: a list of objects, wherever in the document it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from grpo_lightning.datamodules.sources.rows import Row


def json_rows(file: TextIO, field: str | None, is_lines: bool) -> Iterator[Row]:
    """The rows of a JSON document, or of JSON Lines.

    Args:
        file: Opened.
        field: Key of the list of rows inside of a JSON object.
        is_lines: Whether the file's name says that there is a row per line.

    Raises:
        ValueError: If it is not what its name says.
    """
    if field is None and is_lines:
        yield from _json_lines(file)
        return
    text = file.read()
    try:
        whole = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" or field is not None:  # something follows the first value: one row per line
            raise ValueError(f"it is not JSON: {error}") from error
        yield from _json_lines(text.splitlines())
        return
    yield from (_as_row(one, f"row {index}") for index, one in enumerate(rows_inside(whole, field)))


def _json_lines(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {getattr(error, 'msg', error)}") from error
        yield _as_row(value, f"line {number}")


def _as_row(value: Any, place: str) -> Row:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ValueError(f"{place} holds {value!r:.80}, not an object with keys.")
    return value


def rows_inside(value: Any, field: str | None = None) -> list[Any]:
    """The rows of a JSON document: a list of them, an object with such a list inside, or one object of columns.

    Args:
        value: The document.
        field: Key of the list; None finds the only list of objects. A list of messages is none: it is a prompt.

    Raises:
        ValueError: If the key is missing, or several lists could be meant.

    Example:
        >>> rows_inside({"version": 2, "data": [{"q": 1}, {"q": 2}]}), rows_inside({"q": [1, 2], "a": [3, 4]})
        ([{'q': 1}, {'q': 2}], [{'q': 1, 'a': 3}, {'q': 2, 'a': 4}])
        >>> rows_inside({"prompt": [{"role": "user", "content": "Hi"}]})
        [{'prompt': [{'role': 'user', 'content': 'Hi'}]}]
    """
    if field is not None:
        if not isinstance(value, dict) or not isinstance(value.get(field), list):
            found = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"field={field!r} is not a list in the file. Found: {found}.")
        return value[field]
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    lists = [key for key, inner in value.items() if _is_table(inner)]
    if len(lists) > 1:
        raise ValueError(f"it has several lists of rows: {', '.join(lists)}. Name one: {{file_name: ..., field: ...}}.")
    if lists:
        return value[lists[0]]
    columns = list(value.values())
    if columns and all(isinstance(c, list) and not _is_chat(c) for c in columns) and len(set(map(len, columns))) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return [value]


def _is_table(value: Any) -> bool:
    is_objects = isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    return is_objects and not _is_chat(value)


def _is_chat(value: list[Any]) -> bool:
    return any(isinstance(one, dict) and "role" in one for one in value)
