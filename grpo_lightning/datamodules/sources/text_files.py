"""JSON and tables of text as rows, read by Python: Arrow would turn dates into timestamps and round whole numbers."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import fsspec

from grpo_lightning.datamodules.sources.files import COMPRESSIONS, FILE_FORMATS, split_ending
from grpo_lightning.datamodules.sources.json_rows import json_rows
from grpo_lightning.datamodules.sources.rows import Row
from grpo_lightning.datamodules.sources.table_rows import table_rows

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class UnreadableFileError(ValueError):
    """A file's content is not what its name says."""


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
        ending = split_ending(path)[0]
        try:
            with open_text(path) as file:
                if FILE_FORMATS.get(ending) == "csv":
                    yield from table_rows(file, is_tsv=ending == ".tsv")
                else:
                    yield from json_rows(file, field, is_lines=ending != ".json")
        except (ValueError, EOFError, OSError, csv.Error) as error:
            if isinstance(error, UnicodeDecodeError):
                error = ValueError(not_utf8(path, error))
            raise UnreadableFileError(f"{path}: {error}" if len(several) > 1 else str(error)) from error


def open_text(path: str) -> TextIO:
    """A local file or one on the hub, as text: UTF-8, or what a byte order mark at its beginning says.

    Args:
        path: The file, compressed or not by its ending.

    Raises:
        ValueError: If the file is UTF-16 without a mark.
    """
    file = io.BufferedReader(_opened(path))
    start = file.peek(4)[:4]
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in start:
        file.close()
        raise ValueError(f"it has zero bytes, as UTF-16 without a byte order mark has. {_way_out(path, 'UTF-16LE')}")
    return io.TextIOWrapper(file, encoding=encoding, newline="")  # csv wants line ends as they are


def not_utf8(path: str, error: UnicodeDecodeError) -> str:
    """Why a file could not be decoded: the first line that is not UTF-8, and how to convert the file."""
    if "utf-8" not in error.encoding and "utf_8" not in error.encoding:
        return f"it begins with the mark of {error.encoding} and is not in it ({error.reason})"
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                near = line[max(0, wrong.start - 20) : wrong.start + 20].decode("latin-1").strip()
                return (
                    f"line {number} is not UTF-8: byte 0x{line[wrong.start]:02x} in {near!r}, which reads so as Latin-1. "
                    + _way_out(path, "WINDOWS-1252")
                )
    return str(error)


def _opened(path: str) -> Any:
    if "://" in path:
        return fsspec.open(path, "rb", compression="infer").open()
    return COMPRESSIONS.get(Path(path).suffix.lower(), open)(path, "rb")


def _way_out(path: str, encoding: str) -> str:
    name = path.rpartition("/")[2]
    return f"Convert the file to UTF-8: iconv -f {encoding} -t UTF-8 {name} > utf8-{name}"
