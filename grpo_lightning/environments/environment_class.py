"""What a class says about its environments before there is one: which methods are tools, how it may be called."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lightning.environments.episode import EnvironmentContractError
from grpo_lightning.environments.tools import Tool, by_name, methods_of, tool_of

NO_TOOLS = ("reset", "get_reward", "close")
"""Methods that the rollout calls, never the model."""
ISOLATIONS = ("thread", "process")


@dataclass(frozen=True)
class EnvironmentClass:
    """A class of environments, read once.

    Args:
        make: Makes an instance, without arguments.
        kind: The class of what it makes.
        tools: Of its methods, unbound, by name.
        has_step: Whether ``step(text)`` answers turns of text.
        isolation: ``thread``, or ``process`` for what may die or seeds global state.
        concurrency: Calls at once over all instances (1 for classes that are not thread-safe), or with
            ``isolation = "process"`` how many instances and processes there are at once; 0 for the default.
    """

    make: Callable[[], Any]
    kind: type
    tools: dict[str, Tool]
    has_step: bool
    isolation: Literal["thread", "process"]
    concurrency: int

    @property
    def name(self) -> str:
        """Of the class, for errors."""
        return self.kind.__name__


def argument_names(maker: Callable[..., Any]) -> list[str] | None:
    """Of those that can be given by name; None of a class written in C that does not tell.

    Example:
        >>> argument_names(lambda size, *more, level=1, **further: None)
        ['size', 'level']
    """
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):
        return None
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]


def check_arguments(make: Callable[[], Any], setting: str) -> None:
    """Refuses what cannot be called as it stands, before a rollout finds out.

    Args:
        make: Makes an environment: a class or a function, or ``functools.partial`` of one.
        setting: Which names it, for the error.

    Raises:
        EnvironmentContractError: If it wants other arguments than it is given.
    """
    maker, given = (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):  # some classes written in C have none
        return
    try:
        signature.bind(*(make.args if isinstance(make, functools.partial) else ()), **given)
    except TypeError as error:
        name = getattr(maker, "__name__", repr(maker))
        raise EnvironmentContractError(
            f"{setting}: {name}({', '.join(signature.parameters)}) is called with {', '.join(given) or 'nothing'}: {error}. Its arguments are the "
            f"init_args beside class_path; columns of the data go to reset."
        ) from error


def read_class(make: Callable[[], Any]) -> EnvironmentClass:
    """What the class of ``make()`` says.

    Args:
        make: A class, ``functools.partial`` of one, or any function; the last is called once, to see what it makes, with
            the tools that its constructor adds.

    Raises:
        EnvironmentContractError: If there is no ``reset``, a tool has no schema, or a setting is unknown.
    """
    maker = make.func if isinstance(make, functools.partial) else make
    made = None if isinstance(maker, type) else make()
    kind = maker if isinstance(maker, type) else type(made)
    methods = methods_of(kind)
    if "reset" not in methods:
        has = ", ".join(methods) or "no methods"
        raise EnvironmentContractError(
            f"model.environment: {kind.__name__} has no method reset(self, **row) (it has {has}). reset starts an episode "
            "and returns the first observation, or None."
        )
    has_step = "step" in methods and is_answer(methods["step"])
    hidden = (*NO_TOOLS, "step") if has_step else NO_TOOLS
    receiver = object()  # only bound methods leave ``self`` out of their schemas in any spelling
    functions = {
        name: types.MethodType(function, receiver) if _takes_self(kind, name) else function
        for name, function in methods.items()
    } | added_methods(made)
    tools = by_name(_named(name, tool_of(function)) for name, function in functions.items() if name not in hidden)
    isolation: Any = getattr(kind, "isolation", "thread")
    concurrency: Any = getattr(kind, "concurrency", 0)
    if isolation not in ISOLATIONS or not isinstance(concurrency, int) or concurrency < 0:
        raise EnvironmentContractError(
            f"{kind.__name__} has isolation={isolation!r} and concurrency={concurrency!r}. isolation is one of "
            f"{', '.join(ISOLATIONS)}, concurrency a number of calls, 0 for no limit."
        )
    return EnvironmentClass(make, kind, tools, has_step, isolation, concurrency)


def added_methods(environment: Any) -> dict[str, Callable[..., Any]]:
    """Bound methods that its constructor has put on an instance, by name: tools too, as in TRL.

    Example:
        >>> import types
        >>> added_methods(types.SimpleNamespace(search=object().__eq__, size=3, page=Tool.__init__.__get__(object())))
        {'page': <bound method Tool.__init__ of <object object at ...>>}
    """
    own = getattr(environment, "__dict__", {})
    return {name: value for name, value in own.items() if inspect.ismethod(value) and not name.startswith("_")}


def check_read(described: EnvironmentClass, environment: Any) -> None:
    """Refuses an instance with tools that nobody could have read off its class.

    Raises:
        EnvironmentContractError: With both ways out.
    """
    added = [name for name in added_methods(environment) if name not in (*described.tools, *NO_TOOLS, "step")]
    if added:
        raise EnvironmentContractError(
            f"The constructor of {described.name} adds the tools {', '.join(added)}. Those of a class are read before it is "
            f"called: name a function that makes the environment instead, such as def make(): return {described.name}(), or "
            "write methods. What is no tool gets a name with an underscore in front."
        )


def is_answer(step: Callable[..., Any]) -> bool:
    """Whether an unbound ``step`` answers turns: its one argument is called ``text``. Any other is a tool, as in TRL.

    Example:
        >>> is_answer(lambda self, text: ""), is_answer(lambda self, action: "")
        (True, False)
    """
    return list(inspect.signature(step).parameters)[1:] == ["text"]


def accepted_columns(reset: Callable[..., Any], row: dict[str, Any], name: str) -> dict[str, Any]:
    """The columns of ``row`` that a bound ``reset`` takes; all where it has ``**row``.

    Raises:
        EnvironmentContractError: If it needs one that the row does not have.
    """
    parameters = inspect.signature(reset).parameters.values()
    others = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [p.name for p in parameters if p.default is p.empty and p.kind not in others and p.name not in row]
    if missing:
        raise EnvironmentContractError(
            f"{name}.reset needs {', '.join(missing)}, but the row has {', '.join(row) or 'no columns'}. Add the column to "
            "the data, or give the argument a default."
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return row
    return {p.name: row[p.name] for p in parameters if p.name in row}


def _named(name: str, tool: Tool) -> Tool:
    """The tool under the name that it is called by: that of the attribute."""
    function = tool.schema["function"] | {"name": name}
    return dataclasses.replace(tool, schema=tool.schema | {"function": function})


def _takes_self(kind: type, name: str) -> bool:
    return not isinstance(inspect.getattr_static(kind, name), staticmethod)
