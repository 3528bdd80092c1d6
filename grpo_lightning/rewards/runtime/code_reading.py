"""Which names of which modules the code of a function reads, told from attributes of the same name that other objects have."""

from __future__ import annotations

import dis
import gc
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

BETWEEN = frozenset({"EXTENDED_ARG", "CACHE", "NOP", "PUSH_NULL", "RESUME", "NOT_TAKEN"})
"""Instructions that may stand between the load of a module and that of its attribute."""
VARIABLE = re.compile("^(LOAD|STORE)_.*(FAST|NAME|DEREF|GLOBAL)")
OF_MODULE = re.compile("^LOAD_.*(NAME|GLOBAL)")
"""Loads that find what is global; in Python 3.11 to 3.14."""


def names_read_of_modules(function: types.FunctionType) -> Iterator[tuple[str, str]]:
    """``(module, name)`` of every ``module.name`` and ``from module import name`` in the code; ``(module, "")`` of each module.

    Modules are known by what the function's globals and closure hold, and by its own imports under whatever name. Functions
    and classes inside of it are read, too. What is called otherwise (``getattr``, an argument) is not seen.

    Example:
        >>> import signal
        >>> def reward(completions, clock):
        ...     return signal.SIGKILL, clock.alarm
        >>> sorted(names_read_of_modules(reward))
        [('signal', ''), ('signal', 'SIGKILL')]
    """
    shared = {name: value.__name__ for name, value in closure_of(function) if isinstance(value, types.ModuleType)}
    for code in codes_of(function):
        yield from _read(code, function.__globals__, shared)


def closure_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The names that a function has from around it, with their values; None for one that is not bound yet."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, next(iter(gc.get_referents(cell)), None)


def codes_of(function: types.FunctionType) -> list[types.CodeType]:
    """The code of a function, and of the functions and classes inside of it, from the outside in."""
    codes = [function.__code__]
    for code in codes:  # which grows meanwhile
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return codes


def _read(code: types.CodeType, around: dict[str, Any], shared: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Follows the modules through the instructions.

    Args:
        code: Of a function or of something inside of it.
        around: Its globals.
        shared: Variables of the functions around it that hold modules, by name; those that it has for inner ones are added.
    """
    own: dict[str, str] = {}
    top, source, names_follow, constant = "", "", False, None  # top: the module that was loaded last
    for step in dis.get_instructions(code):
        kind, value = step.opname, step.argval
        if kind in BETWEEN:
            continue
        if kind == "IMPORT_NAME":
            yield value, ""
            names_follow = constant is not None  # from a.b import c, else import a.b, which binds a
            source = top = value if names_follow else value.partition(".")[0]
        elif kind == "IMPORT_FROM":
            yield source, value
            top = _inner(source, value) or f"{source}.{value}"
            source = source if names_follow else top  # import a.b as c
        elif kind in ("LOAD_ATTR", "LOAD_METHOD"):
            if top:
                yield top, value
            top = _inner(top, value)
        elif VARIABLE.search(kind):
            stores = kind.count("STORE_")
            for place, name in enumerate(value if isinstance(value, tuple) else (value,)):  # from 3.13 on two at once
                variables = shared if name in code.co_cellvars or name in code.co_freevars else own
                if place < stores:
                    variables[name], top = top, ""
                    continue
                top = variables.get(name, "") or (_name(around.get(name)) if OF_MODULE.search(kind) else "")
                if top:
                    yield top, ""
        else:
            top, constant = "", value if kind == "LOAD_CONST" else None


def _inner(module: str, name: str) -> str:
    """The name of a module that another one has under ``name``; empty for what is none."""
    return _name(vars(sys.modules[module]).get(name)) if module in sys.modules else ""


def _name(value: Any) -> str:
    return value.__name__ if isinstance(value, types.ModuleType) else ""
