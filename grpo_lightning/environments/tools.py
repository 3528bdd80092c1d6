"""Tools: functions that a model calls, with the schema that its chat template shows."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

from grpo_lightning.environments.episode import EnvironmentContractError, ToolMistake


@dataclass(frozen=True)
class Tool:
    """A function with its schema.

    Args:
        schema: As the chat template takes it: ``{"type": "function", "function": {"name": ..., "parameters": ...}}``.
        function: Called with the model's arguments by keyword; may be a coroutine function.
        concurrency: Calls at once, over all rollouts; 1 for what is not thread-safe, 0 for no limit.
    """

    schema: dict[str, Any]
    function: Callable[..., Any]
    concurrency: int = 0

    @property
    def name(self) -> str:
        """What the model calls it."""
        return str(self.schema["function"]["name"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The schema of its arguments."""
        return self.schema["function"].get("parameters") or {}

    @cached_property
    def validator(self) -> Any:
        """Checks arguments; made once, since rollouts make thousands of calls."""
        return Draft202012Validator(_with_null(self.parameters))


def tool_of(function: Callable[..., Any]) -> Tool:
    """The tool that a typed function with a Google docstring is, as in TRL and transformers.

    Its attribute ``concurrency`` says how many calls may run at once.

    Raises:
        EnvironmentContractError: If no schema can be made: a docstring or a type is missing.

    Example:
        >>> def double(number: int) -> int:
        ...     '''Doubles a number.
        ...
        ...     Args:
        ...         number: To be doubled.
        ...     '''
        ...     return 2 * number
        >>> tool_of(double).schema["function"]["parameters"]["properties"]
        {'number': {'type': 'integer', 'description': 'To be doubled.'}}
    """
    from transformers.utils import (
        get_json_schema,  # seconds, which a child process with its schemas does not have to wait
    )
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    name = getattr(function, "__qualname__", repr(function))
    try:
        schema = get_json_schema(function)
    except Exception as error:  # annotations are evaluated: those of a name that is not imported raise NameError
        known = isinstance(error, DocstringParsingException | TypeHintParsingException)
        kind = "" if known else f"{type(error).__name__}: "
        raise EnvironmentContractError(
            f"{name} cannot be a tool: {kind}{' '.join(map(str, error.args))}. A tool has a type for each argument and a Google "
            "docstring that describes each under Args:. A method that is no tool starts with an underscore."
        ) from error
    return Tool(schema, function, int(getattr(function, "concurrency", 0)))


def by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    """The tools by their names.

    Raises:
        EnvironmentContractError: If two have the same.
    """
    found: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in found:
            raise EnvironmentContractError(
                f"Two tools are called {tool.name!r}: the model could not say which it means. Rename one."
            )
        found[tool.name] = tool
    return found


def checked_arguments(tool: Tool, arguments: dict[str, Any] | str) -> dict[str, Any]:
    """The arguments as a mapping that the tool's schema allows.

    Raises:
        ToolMistake: Telling the model what is wrong with them.

    Example:
        >>> from grpo_lightning.environments.tools import tool_of
        >>> def half(number: int) -> float:
        ...     '''Halves a number.
        ...
        ...     Args:
        ...         number: To be halved.
        ...     '''
        >>> checked_arguments(tool_of(half), '{"number": 4}')
        {'number': 4}
        >>> checked_arguments(tool_of(half), '{"numbr": 4}')
        Traceback (most recent call last):
        grpo_lightning.environments.episode.ToolMistake: half has no argument 'numbr'. It takes number (integer).
    """
    read = arguments
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:  # the latter of thousands of brackets
            raise ToolMistake(f"The arguments of {tool.name} are no JSON: {error}. {_takes(tool)}") from error
    if not isinstance(read, dict):
        raise ToolMistake(f"The arguments of {tool.name} are no JSON object but {read!r:.200}. {_takes(tool)}")
    unknown = [name for name in read if name not in tool.parameters.get("properties", {})]
    if unknown and "additionalProperties" not in tool.parameters:
        raise ToolMistake(f"{tool.name} has no argument {', '.join(map(repr, unknown))}. {_takes(tool)}")
    wrong = best_match(tool.validator.iter_errors(read))
    if wrong is not None:
        where = f" {wrong.json_path.removeprefix('$.')}" if wrong.path else "s"
        raise ToolMistake(f"{tool.name} got a wrong argument{where}: {wrong.message:.300}. {_takes(tool)}")
    return read


def _with_null(schema: Any) -> Any:
    """The schema in words that its validator knows: transformers writes an ``Optional`` as OpenAPI's ``nullable``."""
    if isinstance(schema, list):
        return [_with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    said = {name: _with_null(value) for name, value in schema.items()}
    if said.get("nullable") is True:
        if "type" in said:
            kinds = said["type"] if isinstance(said["type"], list) else [said["type"]]
            said["type"] = [*kinds, "null"]
        if "enum" in said:
            said["enum"] = [*said["enum"], None]
    return said


def unknown_tool(name: str, tools: Iterable[str]) -> str:
    """What the model is told that called a tool which does not exist."""
    return f"There is no tool {name!r:.200}. The tools are: {', '.join(tools) or 'none'}."


def methods_of(kind: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class, by name and unbound, in the order of their names as in TRL."""
    found = inspect.getmembers(kind, predicate=inspect.isfunction)
    return {name: function for name, function in found if not name.startswith("_")}


def _takes(tool: Tool) -> str:
    required = set(tool.parameters.get("required", []))
    named = [
        f"{name} ({schema.get('type', 'any')}{'' if name in required else ', optional'})"
        for name, schema in tool.parameters.get("properties", {}).items()
    ]
    return f"It takes {', '.join(named) or 'no arguments'}."
