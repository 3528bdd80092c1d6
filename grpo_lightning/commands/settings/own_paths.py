"""Import paths of a config that name something of this package which is not there, found without importing anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_lightning.commands.settings.yaml_file import COMMAND_LINE, Entry

PACKAGE = Path(__file__).parents[2]
PATH = re.compile(rf"{PACKAGE.name}(\.[^\W\d]\w*)+")


def lost_paths(entry: Entry) -> Iterator[str]:
    """One line for each import path in an entry at which nothing stands, with where a thing of that name is."""
    if isinstance(entry.value, dict) and entry.where != COMMAND_LINE:
        return  # each key of a file is an entry of its own
    setting, _, key = entry.name.rpartition(".")
    is_named = key == "class_path"
    for path in _paths({key: entry.value} if is_named else entry.value):
        place, name = _place(path)
        if name is None or _has(place, name):
            continue
        found = _of_the_name(path.rpartition(".")[2])
        meant = f" Did you mean {' or '.join(found)}?" if found else ""
        yield f"{setting if is_named else entry.name}: {path} is not there ({entry.where}).{meant}"


def _paths(value: Any) -> Iterator[str]:
    """Of a class_path at any depth, and texts that begin as a module of this package does."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "class_path" and isinstance(each, str) and PATH.fullmatch(each):
                yield each
            else:
                yield from _paths(each)
    elif isinstance(value, list):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, str) and PATH.fullmatch(value) and _place(value)[0] != PACKAGE / "__init__.py":
        yield value


def _place(path: str) -> tuple[Path, str | None]:
    """The file of the longest part of a path that is a module, and the name that it is to have; None where it is a module."""
    folder, names = PACKAGE, path.split(".")[1:]
    for n, name in enumerate(names):
        if (folder / name).is_dir():
            folder = folder / name
        elif (module := folder / f"{name}.py").is_file():
            return module, next(iter(names[n + 1 :]), None)
        else:
            return folder / "__init__.py", name
    return folder / "__init__.py", None


def _has(file: Path, name: str) -> bool:
    """Whether the file writes the name: defines or imports it, or says in a text that it is imported once it is asked for."""
    return file.is_file() and re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) is not None


def _of_the_name(name: str) -> list[str]:
    """Import paths of classes and functions of this package that are called so."""
    defined = re.compile(rf"^(class|def|async def) {name}\b", re.MULTILINE)
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if defined.search(file.read_text(encoding="utf-8"))]
    parts = [file.relative_to(PACKAGE.parent).with_suffix("").parts for file in files]
    return [".".join([*(part for part in each if part != "__init__"), name]) for each in parts]
