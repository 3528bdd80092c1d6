"""Settings of a run's config that came from somebody else: a class that they name, and that would be imported, is one of peft's."""

from __future__ import annotations

import importlib
import types
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import peft

OWN = ("grpo_lightning.", "peft.")
"""Packages whose classes a config may name."""

PLAIN = (str, int, float, bool, type(None))
"""What is read from text without looking for a class."""

ARGUMENTS = ("init_args", "dict_kwargs")
"""Beside ``class_path``, what the class is called with."""


def refuse_foreign_classes(settings: dict[str, Any], names: Collection[str], kind: type) -> None:
    """Refuses the class of another package: a run's directory may come from somebody else, and importing runs its module.

    A class is named by ``class_path`` at any depth, or by a text alone where the type of a setting is a class.

    Args:
        settings: Of the model.
        names: Of those that are read.
        kind: The class that they are settings of, whose fields say what is expected.

    Raises:
        ValueError: Naming the class.

    Example:
        >>> from peft import LoraConfig
        >>> refuse_foreign_classes({"target_modules": "a.b", "r": 8}, ["target_modules", "r"], LoraConfig)
        >>> refuse_foreign_classes({"loftq_config": "this.X"}, ["loftq_config"], LoraConfig)
        Traceback (most recent call last):
            ...
        ValueError: the run's config names the class this.X for its model, and only fit imports what a config names...
    """
    expected = _fields_of(kind)
    for name in names:
        if name in settings:
            _refuse_in(settings[name], expected.get(name, object))


def _refuse_in(value: Any, hint: Any) -> None:
    """``hint`` is the type that is expected; ``object`` where it is not known."""
    leaves = list(_leaves(hint))
    if isinstance(value, str):
        if not all(leaf is dict or _is_plain(leaf) for leaf in leaves) or (dict in leaves and "class_path" in value):
            _refuse_other(value)
    elif isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            _refuse_other(value["class_path"])
        expected: dict[str, Any] = {}
        for kind in (*leaves, _own_class(value.get("class_path"))):
            expected |= _fields_of(kind)
        # What an entry of a plain dictionary holds is not looked at by its type, but it may hold such a dictionary again.
        other = object if any(leaf is not dict and not _is_plain(leaf) for leaf in leaves) else dict
        for name, item in value.items():
            if name in ARGUMENTS and isinstance(item, dict):
                for inner, argument in item.items():
                    _refuse_in(argument, expected.get(inner, other))
            elif name != "class_path":
                _refuse_in(item, expected.get(name, other))
    elif isinstance(value, list):
        for item in value:
            _refuse_in(item, hint)


def _leaves(hint: Any) -> Iterator[Any]:
    """The types that a value may have, and those of the entries of lists and dictionaries."""
    origin = get_origin(hint)
    if origin is Literal:
        return
    if origin in (Union, types.UnionType, list, tuple, set, dict):
        for inner in get_args(hint):
            yield from _leaves(inner)
    elif hint not in (list, tuple, set, Ellipsis):
        yield hint


def _is_plain(kind: Any) -> bool:
    return kind in PLAIN or (isinstance(kind, type) and issubclass(kind, Enum))


def _fields_of(kind: Any) -> dict[str, Any]:
    """Types by name; none where they cannot be told."""
    if not isinstance(kind, type) or kind is dict or _is_plain(kind):
        return {}
    try:
        return get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return {}


def _own_class(path: Any) -> Any:
    """The class of a path that is not refused; None where there is no such class, which reading the settings says."""
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module) if module else peft, name, None)
    except ImportError:
        return None


def _refuse_other(path: str) -> None:
    is_own = all(part.isidentifier() for part in path.split(".")) and path.startswith(OWN)
    if not is_own and not isinstance(getattr(peft, path, None), type):
        raise ValueError(
            f"the run's config names the class {path[:100]} for its model, and only fit imports what a config names. "
            "Write the model with fit's own export, or remove the setting."
        )
