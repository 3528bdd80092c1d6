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

from grpo_lightning.rewards.runtime.code_reading import closure_of, codes_of, names_read_of_modules

USE_SIGNALS = frozenset(
    {"math_verify", "latex2sympy2", "latex2sympy2_extended", "lighteval"}
    | {"timeout_decorator", "wrapt_timeout_decorator", "interruptingcow"}
)
"""Packages that bound the time of a call with ``signal.alarm``."""
TELLING = {
    "signal": frozenset(
        {"signal", "alarm", "setitimer", "siginterrupt"} | {"SIGALRM", "SIGVTALRM", "SIGPROF", "ITIMER_REAL"}
    ),
    "asyncio": frozenset({"get_event_loop"}),  # in the main thread it gives a loop, in others it raises
}
"""Module -> names of it that show a need; ``signal.SIGKILL`` is no reason, and no ``alarm`` of another object."""
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
    if package in USE_SIGNALS or name in TELLING.get(package, ()):
        return f"it uses {package}.{name}"
    if isinstance(thing, types.FunctionType):
        read = sorted(names_read_of_modules(thing))
        if packages := {module.partition(".")[0] for module, _ in read} & USE_SIGNALS:
            return f"{thing.__name__} uses {min(packages)}"
        for module, used in read:
            if used in TELLING.get(module, ()):
                return f"{thing.__name__} uses {module}.{used}"
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
    names = dict.fromkeys(name for code in codes_of(function) for name in code.co_names)  # in an order that repeats
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    for value in (*values, *(value for _, value in closure_of(function))):
        if isinstance(value, types.ModuleType) and _is_users(value, home):
            yield from (vars(value)[used] for used in names if used in vars(value))
        yield value
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    yield getattr(function, "__wrapped__", None)


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
