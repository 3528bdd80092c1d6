"""A test's view of a program in another process: names to call, objects without a will of their own.

A test must not be judged by what the program says of the test's own values. So plain results are rebuilt as builtins, and an
object that stays with the program (``Remote``) is asked only what shows it nothing that the test expects: it is never
equal to a plain value, never compared with one, and always true.
"""

from __future__ import annotations

import builtins
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from grpo_lightning.rewards.sandbox.values import decode, encode
from grpo_lightning.rewards.sandbox.wire import Closed, Wire

TELLING = {"__name__", "__qualname__", "__doc__", "__annotations__"}
"""Double underscores that may be asked for: protocols such as ``__array_interface__`` would be believed."""
NEVER_RAISED = (StopIteration, StopAsyncIteration, GeneratorExit)
"""They would end a loop of the test's before its first comparison."""


class Link:
    """Asks the program.

    Args:
        wire: To the program.
        end: Called, and expected not to return, when the program has died or answers nonsense.
    """

    def __init__(self, wire: Wire, end: Callable[[str], NoReturn]) -> None:
        self._wire, self._end = wire, end
        self._remotes: dict[int, Remote] = {}
        self._errors: dict[int, type] = {}
        self._functions: list[Any] = []
        self._lock = threading.RLock()
        self.asked = 0
        """How often the test has asked something of the program."""

    def names(self) -> tuple[dict[str, Any], dict[str, str]] | None:
        """What the program has defined, and which of its names are modules; None where it has failed."""
        message = self._receive()
        if message[0] == "failed":
            return None
        try:
            _, sent, modules = message
            return {name: self._decoded(value) for name, value in sent.items()}, dict(modules)
        except Exception:
            self._end("failed")

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """The result of an operation on the program's side, or the exception that it raised there."""
        with self._lock:
            self.asked += 1
            sent = [self._encoded(value) for value in args]
            self._send([operation, sent, {name: self._encoded(value) for name, value in kwargs.items()}])
            while (message := self._receive())[0] == "call":
                self._send(self._called(message))
            try:
                if message[0] == "ok":
                    _, result, changed = message
                    _copy_back(args, [(place, self._decoded(value)) for place, value in changed])
                    return self._decoded(result)
                error = self._error(*message[1:])
            except Exception:
                self._end("failed")
        raise error

    def _called(self, message: list[Any]) -> list[Any]:
        """The answer of a function that the test has given to the program."""
        try:
            _, number, args, kwargs = message
            function = self._functions[number]
            given = [self._decoded(value) for value in args], {name: self._decoded(v) for name, v in kwargs.items()}
        except Exception:
            self._end("failed")
        try:
            return ["ok", self._encoded(function(*given[0], **given[1]))]
        except Exception as error:
            return ["raise", type(error).__name__, str(error)]

    def _error(self, chain: list[Any], builtin: str, args: list[Any], attributes: dict[str, Any]) -> BaseException:
        kind = self._error_class(chain, builtin)
        values = [self._decoded(value) for value in args]
        try:
            error = kind(*values)
        except TypeError:
            error = RuntimeError(*values)
        error.__dict__.update({str(name): self._decoded(value) for name, value in attributes.items()})
        return error

    def _error_class(self, chain: list[Any], builtin: str) -> type[BaseException]:
        base = getattr(builtins, str(builtin), None)
        is_error = isinstance(base, type) and issubclass(base, (Exception, SystemExit))
        kind: Any = base if is_error and not issubclass(base, NEVER_RAISED) else RuntimeError  # type: ignore[arg-type]
        for number, name in reversed(chain):
            kind = self._errors.setdefault(int(number), type(str(name), (kind,), {}))
        return kind

    def _receive(self) -> list[Any]:
        try:
            return self._wire.receive()
        except Closed:
            self._end("died")

    def _send(self, message: list[Any]) -> None:
        try:
            self._wire.send(message)
        except Closed:
            self._end("died")

    def _encoded(self, value: Any) -> Any:
        return encode(value, self._handle)

    def _handle(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["yours", value._number]
        if isinstance(value, type):
            if (number := next((n for n, kind in self._errors.items() if kind is value), None)) is not None:
                return ["yours", number]
            if value.__module__ == "builtins" and issubclass(value, BaseException):
                return ["error", value.__name__]
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            self._functions.append(value)
            return ["function", len(self._functions) - 1]
        if isinstance(value, (dict, list, set, tuple, str, int)):  # of a subclass: Counter, defaultdict, a named tuple
            return encode(value, self._handle, subclasses=True)
        raise TypeError(f"a {type(value).__name__} of the test cannot be given to the program in another process")

    def _decoded(self, sent: Any) -> Any:
        return decode(sent, self._given)

    def _given(self, sent: list[Any]) -> Any:
        if sent[0] == "error":
            return self._error_class(sent[1], sent[2])
        kind, number = sent
        if kind == "function":
            return self._functions[number]
        if kind == "coroutine" and type(number) is int:
            return _awaited(Remote(self, number))
        if kind != "remote" or type(number) is not int:
            raise ValueError("malformed")
        return self._remotes.setdefault(number, Remote(self, number))


def _copy_back(args: tuple[Any, ...], changed: list[tuple[int, Any]]) -> None:
    """Does to the test's own lists, dicts and sets what a call did to their copies."""
    for place, value in changed:
        own = args[place]
        if type(own) is not type(value):
            continue
        if isinstance(own, (list, bytearray)):
            own[:] = value
        elif isinstance(own, (dict, set)):
            own.clear()
            own.update(value)


class Remote:
    """An object, function or class of the program's."""

    def __init__(self, link: Link, number: int) -> None:
        self.__dict__.update(_link=link, _number=number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in TELLING:
            raise AttributeError(name)
        return self._link.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the call in the program's process."""
        return self._link.ask("call", self, *args, **kwargs)

    def __eq__(self, other: object) -> Any:
        if self is other:
            return True
        return self._link.ask("eq", self, other) is True if isinstance(other, Remote) else NotImplemented

    def __hash__(self) -> int:
        return int(self._link.ask("hash", self))

    def __len__(self) -> int:
        return int(self._link.ask("len", self))

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        iterator = self._link.ask("iter", self)
        while True:
            found, item = self._link.ask("next", iterator)
            if found is not True:
                return
            yield item

    def __next__(self) -> Any:
        found, item = self._link.ask("next", self)
        if found is not True:
            raise StopIteration
        return item

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._link.ask("delitem", self, key)

    def __str__(self) -> str:
        return _exact_text(self._link.ask("str", self))

    def __repr__(self) -> str:
        return _exact_text(self._link.ask("repr", self))

    def __enter__(self) -> Any:
        return self._link.ask("enter", self)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._link.ask("exit", self)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, Remote) and self._link.ask("isinstance", instance, self) is True

    def __neg__(self) -> Any:
        return _still_remote(self._link.ask("neg", self))


async def _awaited(coroutine: Remote) -> Any:
    return coroutine._link.ask("await", coroutine)


def _exact_text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("no text")
    return value


def _still_remote(value: Any) -> Any:
    if not isinstance(value, Remote):
        raise TypeError("a program's object beside a plain value must give an object again")
    return value


def _comparison(name: str) -> Callable[[Remote, Any], Any]:
    def compare(self: Remote, other: Any) -> Any:
        return self._link.ask(name, self, other) is True if isinstance(other, Remote) else NotImplemented

    return compare


def _arithmetic(name: str, reflected: bool) -> Callable[[Remote, Any], Any]:
    def operate(self: Remote, other: Any) -> Any:
        if isinstance(other, Remote):
            return self._link.ask(name, self, other)
        pair = (other, self) if reflected else (self, other)
        return _still_remote(self._link.ask(name, *pair))  # the program sees what the test adds, not what it expects

    return operate


for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _comparison(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    setattr(Remote, f"__{_name.rstrip('_')}__", _arithmetic(_name, reflected=False))
    setattr(Remote, f"__r{_name.rstrip('_')}__", _arithmetic(_name, reflected=True))
