"""Arguments that Python gives to what a config would make: misspelt names and wrong types are answered as in a config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import is_dataclass
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, Union, cast, get_args, get_origin, get_type_hints

from grpo_lightning.settings.names import hint

Arguments = ParamSpec("Arguments")

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
    "object": "a class_path with init_args",
    "null": "null",
}
"""Types in the words of a config."""


def _is_list(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


SIMPLE: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: (WORDS["int"], lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: (WORDS["float"], lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    str: (WORDS["str"], lambda value: isinstance(value, str | PathLike)),
    bool: (WORDS["bool"], lambda value: isinstance(value, bool) or value in (0, 1)),
    list: (WORDS["list"], _is_list),
    dict: (WORDS["dict"], lambda value: isinstance(value, Mapping)),
    Sequence: (WORDS["list"], _is_list),
    NoneType: ("None", lambda value: value is None),
}
PLAIN = (NoneType, Real, str, bytes, PathLike, Mapping, Sequence, Set)
"""What a config can hold, and Python's own kinds of it."""


def checked(init: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """An ``__init__`` that refuses names it does not have and values that cannot be meant."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        made = type(args[0])
        refuse_unknown(made, kwargs, signature)
        refuse_wrong_types(made, signature.bind_partial(*args, **kwargs).arguments, get_type_hints(init))
        init(*args, **kwargs)

    return wrapped


def refuse_unknown(made: type, given: Mapping[str, Any], signature: inspect.Signature) -> None:
    """Refuses names that are no settings, each with the one that was perhaps meant, which may be a subclass's own.

    Raises:
        TypeError: Naming all of them.
    """
    unknown = [name for name in given if name not in signature.parameters]
    if unknown:
        own = inspect.signature(made.__init__).parameters  # type: ignore[misc]  # of a class
        names = [name for name in (*own, *signature.parameters) if name not in ("self", "settings")]
        raise TypeError(
            " ".join(
                f"{made.__name__} has no setting {name}={given[name]!r}. {hint(name, names)}".rstrip()
                for name in unknown
            )
        )


def refuse_wrong_types(made: type, given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuses values of another type than their setting has, as far as that is one that a config writes out.

    Raises:
        TypeError: With what the setting takes.
    """
    for name, value in given.items():
        if name in hints and not may_be(value, hints[name]):
            takes = " or ".join(dict.fromkeys(in_words(hints[name])))
            raise TypeError(f"{made.__name__}: {name}={value!r} cannot be used: it takes {takes}.")


def may_be(value: Any, hint: Any) -> bool:
    """Whether the value may be meant for the type; also where only what uses it can tell, as of an object that no config holds.

    Example:
        >>> [may_be(value, int | None) for value in (8, None, "8", 8.5, True)]
        [True, True, False, False, False]
    """
    if not isinstance(value, PLAIN):  # a function, a dataset, a tensor: one stands where a config has a list
        return True
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(may_be(value, each) for each in get_args(hint))
    if kind is Literal:
        return value in get_args(hint)
    if kind in SIMPLE:
        return SIMPLE[kind][1](value)
    return not is_settings(kind)


def in_words(hint: Any) -> list[str]:
    """What the type takes; nothing for a type that only what uses the value can tell.

    Example:
        >>> in_words(Literal["drop", "refuse"] | int | None)
        ["'drop'", "'refuse'", 'a whole number', 'None']
    """
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return [words for each in get_args(hint) for words in in_words(each)]
    if kind is Literal:
        return [repr(choice) for choice in get_args(hint)]
    if kind in SIMPLE:
        return [SIMPLE[kind][0]]
    return [f"{kind.__name__}(...) of {kind.__module__}"] if is_settings(kind) else []


def is_settings(kind: Any) -> bool:
    """Whether it is a dataclass of this package: a section of a config, an object in Python."""
    return inspect.isclass(kind) and is_dataclass(kind) and cast(type, kind).__module__.startswith("grpo_lightning.")
