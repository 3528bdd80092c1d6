"""One environment and what an episode asks of it: the same in a thread and in a process of its own."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import getattr_static
from numbers import Real
from typing import Any

from grpo_lightning.concurrency.tracebacks import traceback_of
from grpo_lightning.environments.environment_class import EnvironmentClass, accepted_columns, check_read
from grpo_lightning.environments.episode import EnvironmentContractError, EnvironmentFault, ToolMistake
from grpo_lightning.environments.output import as_messages, as_text
from grpo_lightning.environments.printed import Tail, captured
from grpo_lightning.messages import Message


@dataclass(frozen=True)
class Answer:
    """What an environment said."""

    messages: tuple[Message, ...] = ()
    text: str = ""
    reward: float | None = None
    done: bool = False


Operation = tuple[Callable[[], Any], Callable[[Any], Answer]]
"""Calls the user's method; turns what it returned, awaited where it has to be, into an answer."""


class Instance:
    """Makes its environment at the first reset, and keeps it for later ones, as TRL does.

    Args:
        described: Its class.
        limit: Characters of each text.
    """

    def __init__(self, described: EnvironmentClass, limit: int) -> None:
        self.described, self.limit = described, limit
        self._environment: Any = None
        self._own_references = 0

    @property
    def environment(self) -> Any:
        """The user's object, which rewards may look at; None before the first reset."""
        return self._environment

    @property
    def is_free(self) -> bool:
        """Whether nobody looks at the environment any more: rewards get it behind the episode's end, as in TRL."""
        return sys.getrefcount(self._environment) <= self._own_references

    def operation(self, kind: str, *arguments: Any) -> Operation:
        """``reset`` with a row, ``call`` with a name and arguments, ``step`` with a text, ``get_reward`` or ``close``."""
        operation: Operation = getattr(self, f"_{kind}")(*arguments)
        return operation

    def _reset(self, row: dict[str, Any]) -> Operation:
        name = self.described.name

        def start() -> Any:
            if self._environment is None:
                made = self.described.make()
                check_read(self.described, made)
                self._environment = made
            return self._environment.reset(**accepted_columns(self._environment.reset, row, name))

        def finish(said: Any) -> Answer:
            self._own_references = sys.getrefcount(self._environment)  # some hold references to themselves
            return Answer(tuple(as_messages(said, f"{name}.reset", self.limit)), done=self._is_done())

        return start, finish

    def _call(self, tool: str, arguments: dict[str, Any]) -> Operation:
        return (
            lambda: getattr(self._environment, tool)(**arguments),
            lambda result: Answer(text=as_text(result, self.limit), done=self._is_done()),
        )

    def _step(self, text: str) -> Operation:
        name = f"{self.described.name}.step"

        def finish(said: Any) -> Answer:
            if not isinstance(said, tuple):
                return Answer(tuple(as_messages(said, name, self.limit)), done=self._is_done())
            if len(said) != 3:
                raise EnvironmentFault(
                    f"{name} returned a tuple of {len(said)}. Return (observation, reward, done), text or messages."
                )
            observation, reward, done = said
            messages = tuple(as_messages(observation, name, self.limit))
            return Answer(messages, "", number(reward, name) or 0.0, flag(done, name) or self._is_done())

        return lambda: self._environment.step(text), finish

    def _get_reward(self) -> Operation:
        name = f"{self.described.name}.get_reward"
        return (lambda: _called(self._environment, "get_reward")), lambda given: Answer(reward=number(given, name))

    def _close(self) -> Operation:
        return (lambda: _called(self._environment, "close")), lambda nothing: Answer()

    def _is_done(self) -> bool:
        environment = self._environment
        # A property that raises AttributeError must not pass for an environment without one.
        has_done = getattr_static(environment, "done", None) is not None or hasattr(environment, "done")
        return flag(environment.done if has_done else False, self.described.name)


def _called(environment: Any, name: str) -> Any:
    """What the method gives, None without one. No reference to the environment is left behind."""
    return getattr(environment, name)() if hasattr(environment, name) else None


def flag(done: Any, name: str) -> bool:
    """Whether an episode is over.

    Raises:
        EnvironmentFault: If it is neither true nor false: a text such as "no" would count as true.

    Example:
        >>> flag(True, "Game.step"), flag(0, "Game.step"), flag(None, "Game.step")
        (True, False, False)
    """
    done = _scalar(done)
    if done is not None and not (isinstance(done, Real) and done in (0, 1)):
        raise EnvironmentFault(f"{name} gave done={done!r:.80}. It is True where the episode is over, else False.")
    return bool(done)


def number(value: Any, name: str) -> float | None:
    """A reward as a float; None stays None.

    Raises:
        EnvironmentFault: If it is no finite number.

    Example:
        >>> number(True, "Game.step"), number(None, "Game.step")
        (1.0, None)
    """
    if value is None:
        return None
    value = _scalar(value)
    if not isinstance(value, Real) or not abs(float(value)) < float("inf"):
        raise EnvironmentFault(f"{name} gave the reward {value!r:.80}, which is no finite number.")
    return float(value)


def _scalar(value: Any) -> Any:
    """The element of an array or tensor of one."""
    if isinstance(value, Real) or not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (TypeError, ValueError, RuntimeError):  # it has several, or takes an index
        return value


class InstanceRunner:
    """Runs operations on one environment, asynchronous ones on a loop that lasts.

    Args:
        described: Its class.
        limit: Characters of each text.
    """

    def __init__(self, described: EnvironmentClass, limit: int) -> None:
        self.instance = Instance(described, limit)
        self.loop = asyncio.new_event_loop()

    def __call__(self, request: tuple[Any, ...]) -> tuple[str, Any]:
        """Of ``(operation, *arguments)``: ``("answer", Answer)``, ``("raised", (message, traceback))``, or what is wrong with
        ``("fault", text)``, ``("mistake", text)`` or ``("contract", text)``.
        """
        tail = Tail()
        try:
            with captured(tail):
                start, finish = self.instance.operation(*request)
                raw = start()
                return "answer", finish(self.loop.run_until_complete(raw) if inspect.isawaitable(raw) else raw)
        except ToolMistake as error:
            return "mistake", str(error)
        except EnvironmentContractError as error:
            return "contract", str(error)
        except EnvironmentFault as error:
            return "fault", str(error)
        except BaseException as error:  # SystemExit too: the child goes on
            return "raised", (str(error), traceback_of(error) + (f"\nIt printed:\n{tail.text}" if tail.text else ""))
