"""Reads from a reward's code whether it works in the main thread only."""

from __future__ import annotations

import dis
import functools
import sqlite3
import sys
import sysconfig
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

USE_SIGNALS = frozenset(
    {"math_verify", "latex2sympy2", "latex2sympy2_extended", "lighteval"}
    | {"timeout_decorator", "wrapt_timeout_decorator", "interruptingcow"}
)
"""Packages that bound the time of a call with ``signal.alarm``."""
SIGNAL_NAMES = frozenset(
    {"signal", "alarm", "setitimer", "siginterrupt", "SIGALRM", "SIGVTALRM", "SIGPROF", "ITIMER_REAL"}
)
"""What code that sets a handler or an alarm names; ``signal.SIGKILL`` alone is no reason."""
BOUND_TO_A_THREAD = (sqlite3.Connection, sqlite3.Cursor, threading.local)
"""Objects that another thread than their maker's cannot use, or finds empty."""
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
    home = _package_of(reward)
    waiting, seen = [reward], {id(reward): reward}  # holding the objects, or an id could come to mean another one
    while waiting and len(seen) < MOST:
        thing = waiting.pop()
        if reason := _own_reason(thing):
            return reason
        for part in _parts(thing, home):
            if id(part) not in seen:
                seen[id(part)] = part
                waiting.append(part)
    return ""


def _own_reason(thing: Any) -> str:
    if isinstance(thing, BOUND_TO_A_THREAD):
        return f"it holds a {type(thing).__module__}.{type(thing).__qualname__} made in the main thread"
    if isinstance(thing, types.FunctionType):
        for used in _used(thing):
            if _needs_main_thread(used):
                return f"{thing.__name__} uses {used}"
    return ""


def _needs_main_thread(used: str) -> bool:
    package, _, name = used.partition(".")
    if package == "signal":
        return name in SIGNAL_NAMES
    # In the main thread it gives a loop, in others it raises.
    return package in USE_SIGNALS or used == "asyncio.get_event_loop"


def _used(function: types.FunctionType) -> Iterator[str]:
    """``package.name`` of all that the code of a function imports, or takes from modules and libraries."""
    local: dict[str, str] = {}  # modules imported inside the function, by the names that they have there
    for code in _codes(function.__code__):
        module, imported = "", ""
        for instruction in dis.get_instructions(code):
            kind, value = instruction.opname, instruction.argval
            if kind == "IMPORT_NAME":
                module = imported = str(value)
                yield module
            elif kind == "IMPORT_FROM":
                yield f"{module}.{value}"
                imported = ""
            elif kind in ("LOAD_ATTR", "LOAD_METHOD"):
                yield f"{module}.{value}"
                module = ""
            elif kind.startswith("STORE_") and imported:
                local[str(value)], imported = imported, ""
            elif kind in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLOSURE"):
                known = _value_of(function, value)
                module = known.__name__ if isinstance(known, types.ModuleType) else local.get(value, "")
                yield _origin(known, value)
            elif kind.startswith("LOAD_FAST"):
                module = local.get(str(value), "")


def _origin(value: Any, name: str) -> str:
    """``package.name`` of what was imported by name, whatever it is called here; empty for a module's own."""
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] if value.__name__ not in ("signal", "asyncio") else ""
    package = str(getattr(value, "__module__", None) or "").partition(".")[0].lstrip("_")
    return f"{package}.{getattr(value, '__name__', name)}"


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _value_of(function: types.FunctionType, name: str) -> Any:
    if name in function.__code__.co_freevars and function.__closure__:
        try:
            return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents
        except ValueError:  # not bound yet
            return None
    return function.__globals__.get(name)


def _parts(thing: Any, home: str) -> Iterator[Any]:
    """What a thing is made of, as far as it is the user's and may be called."""
    if isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, types.FunctionType):
        if _is_users(thing, home):
            yield from _parts_of_function(thing, home)
    elif isinstance(thing, type):
        users = [kind for kind in thing.__mro__ if _is_users(kind, home)]
        yield from (_plain(value) for kind in users for value in vars(kind).values())
    elif isinstance(thing, list | tuple):
        yield from thing[:100]
    elif isinstance(thing, dict):
        yield from list(thing.values())[:100]
    elif not isinstance(thing, types.ModuleType) and (_is_users(type(thing), home) or hasattr(thing, "function")):
        yield type(thing)
        yield from getattr(thing, "__dict__", {}).values()


def _parts_of_function(function: types.FunctionType, home: str) -> Iterator[Any]:
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    for name in names | set(function.__code__.co_freevars):
        value = _value_of(function, name)
        if not isinstance(value, types.ModuleType):
            yield value
        elif _is_users_module(value.__name__, home):
            yield from (vars(value)[used] for used in names & set(vars(value)))
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    if wrapped := getattr(function, "__wrapped__", None):
        yield wrapped


def _plain(value: Any) -> Any:
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def _package_of(reward: Any) -> str:
    """The top package of the code that a reward starts in: an installed one is the user's choice, too."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    module = getattr(reward, "__module__", None) or type(reward).__module__
    return str(module).partition(".")[0]


def _is_users(thing: Any, home: str) -> bool:
    return _is_users_module(str(getattr(thing, "__module__", None) or "builtins"), home)


def _is_users_module(module: str, home: str) -> bool:
    package = module.partition(".")[0]
    if package in (OURS, "builtins"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)  # none in a notebook
    return package == home or (module not in sys.builtin_module_names and _is_outside_libraries(file))


def _is_outside_libraries(file: str | None) -> bool:
    return file is None or not str(Path(file).resolve()).startswith(LIBRARIES)
