"""JSON and tables of text as rows, read by Python: Arrow would turn dates into timestamps and round whole numbers."""

from __future__ import annotations

import csv
import glob
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grpo_lightning.datamodules.sources.text_files import OPENERS, not_utf8, open_text

FILE_FORMATS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TEXT_FORMATS = ("json", "csv")
"""Formats that are read here, compressed or not; the others hold types of their own."""

_NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")

Row = dict[str, Any]


class UnreadableFileError(ValueError):
    """A file's content is not what its name says."""


def file_format(path: str | Path) -> str | None:
    """Which of ``FILE_FORMATS`` a file is, by its name; None where it cannot be read.

    Example:
        >>> file_format("a/rows.jsonl.gz"), file_format("rows.arrow"), file_format("rows.parquet.gz")
        ('json', 'arrow', None)
    """
    suffix, is_compressed = _suffix(path)
    found = FILE_FORMATS.get(suffix)
    return None if is_compressed and found not in TEXT_FORMATS else found


def _suffix(path: str | Path) -> tuple[str, bool]:
    """(lower-case ending without that of a compression, whether there is a compression)."""
    endings = [ending.lower() for ending in Path(path).suffixes[-2:]]
    if endings and endings[-1] in OPENERS:
        return (endings[-2] if len(endings) > 1 else ""), True
    return (endings[-1] if endings else ""), False


def is_pattern(path: str) -> bool:
    """Whether this names files by a pattern (``shards/*.jsonl``), and is not itself a file."""
    return glob.has_magic(path) and not Path(path).exists()


def matching_files(pattern: str) -> list[str]:
    """The files that a pattern names, sorted; ``**`` goes through folders."""
    return sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())


def check_directory(name: str, path: Path) -> None:
    """Refuses a directory of files in several formats, of which the datasets library would read one.

    Left out is what that library leaves out: hidden files and folders, and its own descriptions. A directory whose
    README.md names its ``data_files`` says itself what is read, and one of ``save_to_disk`` knows it.

    Raises:
        ValueError: Naming a file of each format.
    """
    if not path.is_dir() or any((path / own).is_file() for own in ("state.json", "dataset_dict.json")):
        return
    card = path / "README.md"
    if card.is_file() and "data_files" in card.read_text(encoding="utf-8", errors="replace"):
        return
    found: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        kind = file_format(file)
        is_left_out = any(part.startswith((".", "__")) for part in inside.parts) or file.name in _NO_DATA
        if kind is not None and not is_left_out and file.is_file():
            found.setdefault(kind, inside)
    if len(found) > 1:
        raise ValueError(
            f"Dataset {name!r}: {path} has files of several formats ({' and '.join(map(str, found.values()))}), of which one "
            f"would be read. Name those that are meant, as in {path}/*{next(iter(found.values())).suffix}, or give each "
            "format a directory."
        )


def read_text_files(paths: Iterable[str], field: str | None = None) -> Iterator[Row]:
    """The rows of JSON, JSON Lines, CSV and TSV files, one file after the other.

    Args:
        paths: Files, compressed ones by their ending.
        field: Key of the list of rows inside of a JSON object.

    Raises:
        UnreadableFileError: If a file is not what its ending says; naming it where there are several.
    """
    several = list(paths)
    for path in several:
        try:
            if FILE_FORMATS.get(_suffix(path)[0]) == "csv":
                yield from _read_table(path)
            else:
                yield from _read_json(path, field)
        except (ValueError, EOFError, OSError, csv.Error) as error:
            if isinstance(error, UnicodeDecodeError):
                error = ValueError(not_utf8(path, error))
            raise UnreadableFileError(f"{path}: {error}" if len(several) > 1 else str(error)) from error


# -- JSON -----------------------------------------------------------------------------------------------------------


def _read_json(path: str, field: str | None) -> Iterator[Row]:
    if field is None and _suffix(path)[0] != ".json":
        with open_text(path) as file:
            yield from _json_lines(file)
        return
    with open_text(path) as file:
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


# -- CSV and TSV ----------------------------------------------------------------------------------------------------


def _read_table(path: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the module's limit of 128 KiB a cell is of the whole process
    with open_text(path) as file:
        separator = _separator(path, file.readline())
        file.seek(0)
        lines = csv.reader(file, delimiter=separator, strict=True)
        names = next(lines, [])
        if len(set(names)) < len(names):
            raise ValueError(f"its head names a column twice: {', '.join(names)}.")
        cells = [line for line in lines if line]
    for number, line in enumerate(cells):
        if len(line) != len(names):
            raise ValueError(f"row {number} has {len(line)} cells and the head {len(names)}: {line!r:.120}")
    columns = [_typed([line[place] for line in cells]) for place in range(len(names))]
    yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _separator(path: str, head: str) -> str:
    """What stands between cells: a tab in TSV, else a comma, unless the head has none: spreadsheets write semicolons too."""
    if _suffix(path)[0] == ".tsv":
        return "\t"
    return next((mark for mark in ",;\t" if mark in head), ",")


def _typed(cells: list[str]) -> list[Any]:
    """Numbers or truth values where every cell is written as Python writes them: ``007`` and ``0.50`` stay text."""
    for read in (_number, _truth):
        values = [None if cell == "" else read(cell) for cell in cells]
        if all(value is not None or cell == "" for value, cell in zip(values, cells, strict=True)):
            return values
    return [cell or None for cell in cells]


def _number(cell: str) -> int | float | None:
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        if str(value) == cell and (kind is int or math.isfinite(value)):
            return value
    return None


def _truth(cell: str) -> bool | None:
    return {"True": True, "False": False}.get(cell)
