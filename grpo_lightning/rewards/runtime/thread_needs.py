"""Reads from a reward's code whether it works in the main thread only."""

from __future__ import annotations

import functools
import gc
import sqlite3
import sys
import sysconfig
import threading
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

USE_SIGNALS = frozenset(
    {"math_verify", "latex2sympy2", "latex2sympy2_extended", "lighteval"}
    | {"timeout_decorator", "wrapt_timeout_decorator", "interruptingcow"}
)
"""Packages that bound the time of a call with ``signal.alarm``."""
TELLING = {
    "signal": frozenset({"alarm", "setitimer", "siginterrupt", "SIGALRM", "SIGVTALRM", "SIGPROF", "ITIMER_REAL"}),
    "asyncio": frozenset({"get_event_loop"}),  # in the main thread it gives a loop, in others it raises
}
"""Module -> names beside it that show a need; ``signal.SIGKILL`` alone is no reason."""
BOUND_TO_A_THREAD = (sqlite3.Connection, sqlite3.Cursor, threading.local)
"""Objects that another thread than their maker's cannot use, or finds empty."""
HOLDERS = (list, tuple, dict, functools.partial, types.MethodType, staticmethod, classmethod, property)
OURS = __name__.partition(".")[0]
LIBRARIES = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib"))
MOST = 3000
"""Objects looked at: a reward that reaches more is decided by the probe of its calls."""


def main_thread_reason(reward: Any) -> str:
    """Why a function or callable object needs the main thread; empty where nothing in its code says so.

    Followed are the functions, classes and objects that its code names, in its own package and in files outside of the
    installed libraries. Of libraries only the names are looked at.

    Example:
        >>> import signal
        >>> def limited(completions):
        ...     signal.alarm(1)
        >>> main_thread_reason(limited)
        'limited uses signal.alarm'
        >>> main_thread_reason(lambda completions: [len(text) for text in completions])
        ''
    """
    start = reward
    while isinstance(start, functools.partial):
        start = start.func
    home = _package(start)  # an installed one is the user's choice, too
    waiting: list[Any] = [reward]
    seen: dict[int, Any] = {}  # holding the objects, or an id could come to mean another one
    while waiting and len(seen) < MOST:
        thing = waiting.pop()
        if id(thing) not in seen:
            seen[id(thing)] = thing
            if reason := _own_reason(thing):
                return reason
            waiting += _parts(thing, home)
    return ""


def _own_reason(thing: Any) -> str:
    if isinstance(thing, BOUND_TO_A_THREAD):
        return f"it holds a {type(thing).__module__}.{type(thing).__qualname__} made in the main thread"
    package, name = _package(thing), "" if isinstance(thing, types.ModuleType) else getattr(thing, "__name__", "")
    if package in USE_SIGNALS or name in TELLING.get(package, ()) or (package, name) == ("signal", "signal"):
        return f"it uses {package}.{name}"
    if isinstance(thing, types.FunctionType):
        named = dict(_named(thing))
        modules = {value.__name__ for value in named.values() if isinstance(value, types.ModuleType)}
        modules |= {name for name, value in named.items() if value is None}  # imported inside
        if packages := {module.partition(".")[0] for module in modules} & USE_SIGNALS:
            return f"{thing.__name__} uses {min(packages)}"
        for module, telling in TELLING.items():
            if module in modules and (used := telling & set(named)):
                return f"{thing.__name__} uses {module}.{min(used)}"
    return ""


def _parts(thing: Any, home: str) -> Iterable[Any]:
    """What a thing is made of, as far as it is the user's and may be called."""
    if isinstance(thing, types.ModuleType):
        return ()
    if isinstance(thing, types.FunctionType):
        return _parts_of_function(thing, home) if _is_users(thing, home) else ()
    if isinstance(thing, type):
        return [value for kind in thing.__mro__ if _is_users(kind, home) for value in vars(kind).values()]
    if isinstance(thing, HOLDERS):
        return gc.get_referents(thing)[:200]
    if _is_users(thing, home) or hasattr(thing, "function"):
        return (type(thing), *getattr(thing, "__dict__", {}).values())
    return ()


def _parts_of_function(function: types.FunctionType, home: str) -> Iterator[Any]:
    named = dict(_named(function))
    for value in named.values():
        if isinstance(value, types.ModuleType) and _is_users(value, home):
            yield from (vars(value)[used] for used in named.keys() & vars(value))
        yield value
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    yield getattr(function, "__wrapped__", None)


def _named(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The names in the code of a function, but for its own variables, with what is known of their values."""
    codes = [function.__code__]
    for code in codes:  # which grows meanwhile
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        yield from ((name, function.__globals__.get(name)) for name in code.co_names)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, next(iter(gc.get_referents(cell)), None)  # one that is not bound yet has none


def _module(thing: Any) -> str:
    """The name of a module, or of that in which a function, a class or an object's class was made."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    return str(name or type(thing).__module__)


def _package(thing: Any) -> str:
    return _module(thing).partition(".")[0].lstrip("_")


def _is_users(thing: Any, home: str) -> bool:
    module = _module(thing)
    if _package(thing) in (OURS, "builtins") or module in sys.builtin_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)  # none in a notebook
    return _package(thing) == home or file is None or not str(Path(file).resolve()).startswith(LIBRARIES)
