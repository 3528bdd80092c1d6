"""The program's side: runs the code that a model wrote, prints or answers calls. Nothing here is trusted once it runs."""

from __future__ import annotations

import builtins
import contextlib
import operator
import sys
import types
from typing import Any

from grpo_lightning.rewards.sandbox.values import decode, encode
from grpo_lightning.rewards.sandbox.wire import Closed, Wire

OPERATORS = (
    "eq",
    "lt",
    "le",
    "gt",
    "ge",
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
)
OPERATIONS: dict[str, Any] = {
    **{name: getattr(operator, name) for name in (*OPERATORS, "neg", "abs", "getitem", "setitem", "delitem")},
    "xor": operator.xor,
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "iter": iter,
    "len": len,
    "hash": hash,
    "str": str,
    "repr": repr,
    "isinstance": isinstance,
    "enter": lambda manager: manager.__enter__(),
    "exit": lambda manager: manager.__exit__(None, None, None),
}


def _await(awaitable: Any) -> Any:
    import asyncio  # costs as much as all the rest, and is rarely needed

    async def result() -> Any:
        return await awaitable

    return asyncio.run(result())


def _next(iterator: Any) -> tuple[bool, Any]:
    """Whether there was a further item, and the item: StopIteration itself never leaves this process."""
    try:
        return True, next(iterator)
    except StopIteration:
        return False, None


OPERATIONS |= {"next": _next, "await": _await}


def execute(code: str, name: str) -> dict[str, Any]:
    """Runs the code as the module ``name``; returns its namespace."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(code, "<completion>", "exec"), module.__dict__)
    return module.__dict__


def print_output(request: dict[str, Any]) -> None:
    """A program that reads standard input and prints: exit status 0 unless it raised."""
    try:
        execute(request["code"], "__main__")
    except SystemExit as error:
        raise SystemExit(0 if error.code in (None, 0) else 1) from None
    except BaseException:
        raise SystemExit(1) from None


def serve(request: dict[str, Any]) -> None:
    """A program whose names a test uses: runs it, tells the names, then answers until the test is over."""
    wire = Wire(*request["wire"])
    try:
        namespace = execute(request["code"], "solution")
    except BaseException:  # SystemExit and KeyboardInterrupt, too
        wire.send(["failed"])
        return
    with contextlib.suppress(Closed):
        Server(wire).serve(namespace)


class Server:
    """Holds the objects that the test has been told of, and does with them what it asks."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._objects: dict[int, Any] = {}

    def serve(self, namespace: dict[str, Any]) -> None:
        """Answers until the other side closes."""
        public = {name: value for name, value in namespace.items() if not name.startswith("__")}
        modules = {name: value.__name__ for name, value in public.items() if isinstance(value, types.ModuleType)}
        names = {name: self._encoded(value) for name, value in public.items() if name not in modules}
        self._wire.send(["names", names, modules])
        while True:
            self._wire.send(self._answer(*self._wire.receive()))

    def _answer(self, operation: str, sent: list[Any], keywords: dict[str, Any]) -> list[Any]:
        try:
            args = [self._decoded(value) for value in sent]
            kwargs = {name: self._decoded(value) for name, value in keywords.items()}
            result = self._encoded(OPERATIONS[operation](*args, **kwargs))
            after = [self._encoded(value) for value in args]
            changed = [[place, value] for place, value in enumerate(after) if value != sent[place]]
            return ["ok", result, changed]
        except BaseException as error:
            return self._raised(error)

    def _raised(self, error: BaseException) -> list[Any]:
        chain, builtin = self._ancestors(type(error))
        try:
            args = [self._encoded(argument) for argument in error.args]
            attributes = {name: self._encoded(value) for name, value in vars(error).items()}
        except BaseException:
            args, attributes = [], {}
        return ["raise", chain, builtin, args, attributes]

    def _ancestors(self, kind: type) -> tuple[list[list[Any]], str]:
        """The classes of an exception up to the first builtin one, each with its number; and the builtin's name."""
        chain: list[list[Any]] = []
        for ancestor in kind.__mro__:
            if ancestor.__module__ == "builtins":
                return chain, ancestor.__name__
            chain.append([self._number(ancestor), ancestor.__name__])
        return chain, "Exception"

    def _number(self, value: Any) -> int:
        self._objects[id(value)] = value
        return id(value)

    def _encoded(self, value: Any) -> Any:
        return encode(value, self._handle, subclasses=True)

    def _handle(self, value: Any) -> list[Any]:
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["error", *self._ancestors(value)]
        return ["coroutine" if isinstance(value, types.CoroutineType) else "remote", self._number(value)]

    def _decoded(self, sent: Any) -> Any:
        return decode(sent, self._given)

    def _given(self, sent: list[Any]) -> Any:
        kind, number = sent[0], sent[1]
        if kind == "yours":
            return self._objects[number]
        if kind == "error":
            return getattr(builtins, number)
        return lambda *args, **kwargs: self._call_back(number, args, kwargs)

    def _call_back(self, number: int, args: Any, kwargs: dict[str, Any]) -> Any:
        """Calls a function of the test's."""
        sent = [self._encoded(value) for value in args], {name: self._encoded(value) for name, value in kwargs.items()}
        self._wire.send(["call", number, *sent])
        while True:
            message = self._wire.receive()
            if message[0] == "ok":
                return self._decoded(message[1])
            if message[0] == "raise":
                raise getattr(builtins, message[1], RuntimeError)(message[2])
            self._wire.send(self._answer(*message))  # the function called the program again
