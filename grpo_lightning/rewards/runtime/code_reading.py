"""Which names of which modules the code of a function reads, told from attributes of the same name that other objects have."""

from __future__ import annotations

import dis
import gc
import re
import sys
import types
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

Held = defaultdict[str, set[str]]
"""Variables -> the names of modules that they may hold."""

BETWEEN = frozenset({"EXTENDED_ARG", "CACHE", "NOP", "PUSH_NULL", "RESUME", "NOT_TAKEN"})
"""Instructions that may stand between the load of a module and that of its attribute."""
VARIABLE = re.compile("^(LOAD|STORE)_.*(FAST|NAME|DEREF|GLOBAL)")
OF_MODULE = re.compile("^LOAD_.*(NAME|GLOBAL)")
"""Loads that find what is global; in Python 3.11 to 3.14."""


def names_read_of_modules(function: types.FunctionType) -> set[tuple[str, str]]:
    """``(module, name)`` of every ``module.name`` and ``from module import name`` in the code; ``(module, "")`` of each module.

    Modules are known by what the function's globals and closure hold, and by its own imports under whatever name. A name may
    hold each of the modules that it is ever given: which of them it holds where, only a run would tell. Functions
    and classes inside of it are read, too. What is called otherwise (``getattr``, an argument) is not seen.

    Example:
        >>> import signal
        >>> def reward(completions, clock):
        ...     return signal.SIGKILL, clock.alarm
        >>> sorted(names_read_of_modules(reward))
        [('signal', ''), ('signal', 'SIGKILL')]
    """
    shared: Held = defaultdict(set)
    for name, value in closure_of(function):
        shared[name] |= _name(value)
    codes = [(code, Variables(code, function.__globals__, shared)) for code in codes_of(function)]
    found: set[tuple[str, str]] = set()
    known = -1
    while known != (
        known := sum(variables.count() for _, variables in codes)
    ):  # a loop reads what is given further down
        for code, variables in codes:
            found.update(_read(code, variables))
    return found


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


class Variables:
    """The modules that the variables of one code may hold.

    Args:
        code: Of a function or of something inside of it.
        around: Its globals.
        shared: Variables of the functions around it, by name; those that it has for inner ones are among them.
    """

    def __init__(self, code: types.CodeType, around: dict[str, Any], shared: Held) -> None:
        self._around, self._shared, self._own = around, shared, defaultdict[str, set[str]](set)
        self._shared_names = {*code.co_cellvars, *code.co_freevars}

    def of(self, name: str) -> set[str]:
        """Those that it was given so far."""
        return (self._shared if name in self._shared_names else self._own)[name]

    def of_global(self, name: str) -> set[str]:
        """The one that a global holds."""
        return _name(self._around.get(name))

    def count(self) -> int:
        """How much is known."""
        return sum(map(len, (*self._own.values(), *self._shared.values())))


def _read(code: types.CodeType, variables: Variables) -> Iterator[tuple[str, str]]:
    """Follows the modules through the instructions, and notes those that variables are given."""
    top: set[str] = set()  # what was loaded last, if it is a module
    source, names_follow, constant, copies = "", False, None, 0
    for step in dis.get_instructions(code):
        kind, value = step.opname, step.argval
        if kind in BETWEEN:
            continue
        if kind == "IMPORT_NAME":
            yield value, ""
            names_follow = constant is not None  # from a.b import c, else import a.b, which binds a
            source = value if names_follow else value.partition(".")[0]
            top = {source}
        elif kind == "IMPORT_FROM":
            yield source, value
            top = _inner(source, value) or {f"{source}.{value}"}
            source = source if names_follow else next(iter(top))  # import a.b as c
        elif kind in ("LOAD_ATTR", "LOAD_METHOD"):
            yield from ((module, value) for module in top)
            top = set[str]().union(*(_inner(module, value) for module in top))
        elif kind == "COPY":  # a = b = module, (a := module).name
            copies += 1
        elif VARIABLE.search(kind):
            stores = kind.count("STORE_")
            for place, name in enumerate(value if isinstance(value, tuple) else (value,)):  # from 3.13 on two at once
                if place < stores:
                    variables.of(name).update(top)
                    top, copies = top if copies else set(), max(copies - 1, 0)
                    continue
                top = variables.of(name) | (variables.of_global(name) if OF_MODULE.search(kind) else set())
                yield from ((module, "") for module in top)
        else:
            top, constant, copies = set(), value if kind == "LOAD_CONST" else None, 0


def _inner(module: str, name: str) -> set[str]:
    """The name of a module that another one has under ``name``; empty for what is none."""
    return _name(vars(sys.modules[module]).get(name)) if module in sys.modules else set()


def _name(value: Any) -> set[str]:
    return {value.__name__} if isinstance(value, types.ModuleType) else set()
