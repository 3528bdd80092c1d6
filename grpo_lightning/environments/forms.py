"""From what a config or a script says about tools and environments to the episodes of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from grpo_lightning.class_entry import KEYS, class_path_of
from grpo_lightning.environments.calls import Calls
from grpo_lightning.environments.class_episode import ClassEpisode, ToolCalls, ToolExceptions
from grpo_lightning.environments.environment_class import EnvironmentClass, argument_names, check_arguments, read_class
from grpo_lightning.environments.episode import EnvironmentContractError, Episode, EpisodeFactory
from grpo_lightning.environments.hosts import Host, ProcessHost, ThreadHost
from grpo_lightning.environments.import_path import imported
from grpo_lightning.environments.tools import Tool, by_name, tool_of

DEADLINE = 60.0
"""Seconds for each call of a tool or an environment."""
OUTPUT_LIMIT = 8192
"""Characters that a model reads of one answer."""
COLUMN = "environment"
"""The column of a row that names its environment, where there are several; as in TRL."""

ToolSpec = str | Callable[..., Any] | dict[str, Any]
EnvironmentSpec = str | Callable[[], Any] | dict[str, Any]


@runtime_checkable
class ToolSource(Protocol):
    """Something that has several tools, such as a connection to a server."""

    def open_tools(self) -> list[Tool]:
        """Its tools; what they need is started."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


def open_episodes(
    tools: Sequence[ToolSpec] | ToolSpec | None = None,
    environment: EnvironmentSpec | None = None,
    deadline: float = DEADLINE,
    output_limit: int = OUTPUT_LIMIT,
    tool_exceptions: ToolExceptions = "fault",
) -> EpisodeFactory | None:
    """What makes the episodes of a run; None where there are neither tools nor an environment.

    Args:
        tools: Typed functions with Google docstrings, sync or async, or their import paths; ``{"class_path": ...,
            "init_args": {...}}`` of a source of tools, such as
            :class:`~grpo_lightning.environments.adapters.mcp.MCPTools`.
        environment: A class as TRL's ``environment_factory`` takes it, its import path, ``{"class_path": ...,
            "init_args": {...}}``, or a mapping of names to these: each row then names one in its column ``environment``.
        deadline: Seconds for each call. One that takes longer is a fault.
        output_limit: Characters of each answer that the model reads; a cut is said.
        tool_exceptions: ``fault`` drops the rollout of a tool that raises. ``tell`` tells the model and goes on, as TRL
            does, for tools that raise where the model was wrong.

    Raises:
        EnvironmentContractError: If one cannot be found, has no schema, or no ``reset``.
    """
    entries = [tools] if isinstance(tools, str | dict) or callable(tools) else list(tools or [])
    if not entries and environment is None:
        return None
    if output_limit < 1 or tool_exceptions not in ("fault", "tell"):
        raise EnvironmentContractError(
            f"output_limit={output_limit} and tool_exceptions={tool_exceptions!r} do not go: the first is a number of "
            "characters from 1, the second fault or tell."
        )
    calls = Calls(deadline)
    made = [_made(entry, "model.tools") for entry in entries]
    sources = [entry for entry in made if isinstance(entry, ToolSource)]
    try:
        own = [tool_of(entry) for entry in made if not isinstance(entry, ToolSource)]
        standalone = by_name([*own, *(tool for source in sources for tool in source.open_tools())])
        classes = _classes(environment)
        for described in classes.values():
            by_name([*standalone.values(), *described.tools.values()])
        hosts = {
            name: (ProcessHost if described.isolation == "process" else ThreadHost)(described, calls, output_limit)
            for name, described in classes.items()
        }
    except BaseException:
        for source in sources:
            source.close()
        raise
    return _Episodes(ToolCalls(standalone, calls, output_limit, tool_exceptions), classes, hosts, sources)


def _classes(environment: EnvironmentSpec | None) -> dict[str | None, EnvironmentClass]:
    """By the names that rows use; None for the only one."""
    if environment is None:
        return {}
    if isinstance(environment, Mapping) and "class_path" in environment:
        return {None: _read(_with_settings(environment), "model.environment")}
    if isinstance(environment, Mapping) and not set(environment) <= KEYS:
        return {name: _read(entry, f"model.environment.{name}") for name, entry in environment.items()}
    return {None: _read(environment, "model.environment")}


def _with_settings(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """One environment with its settings: those of ``--model.environment.init_args.limit 9`` arrive beside its class_path.

    So does a misspelt key, which ``**kwargs`` would take: beside it only arguments with a name are meant.
    """
    beside = {name: value for name, value in entry.items() if name not in KEYS}
    given = entry.get("init_args") or {}
    if not beside or not isinstance(given, Mapping):
        return entry
    kind = entry["class_path"]
    named = argument_names(imported(kind, "model.environment") if isinstance(kind, str) else kind)
    odd = [name for name in beside if named is not None and name not in named]
    if odd:
        raise EnvironmentContractError(
            f"model.environment has {', '.join(odd)} beside class_path, and {kind} names no such argument (but "
            f"{', '.join(named or ()) or 'none'}). Write its settings under init_args. Those that its **kwargs would take are "
            'given so on the command line, too: --model.environment \'{"class_path": ..., "init_args": {...}}\'.'
        )
    return {"class_path": kind, "init_args": {**given, **beside}}


def _read(entry: Any, setting: str) -> EnvironmentClass:
    make = _made(entry, setting)
    check_arguments(make, setting)
    return read_class(make)


def _made(entry: Any, setting: str) -> Any:
    """A callable of what a config names; a class with settings is not made yet, unless it is a source of tools."""
    settings: dict[str, Any] = {}
    if isinstance(entry, Mapping):
        parts = class_path_of(entry)
        if parts is None:
            raise EnvironmentContractError(f"{setting} holds {dict(entry)!r}: an entry has class_path and init_args.")
        entry, settings = parts
        if not isinstance(settings, Mapping):
            raise EnvironmentContractError(
                f"{setting} has init_args={settings!r:.200}, which are no mapping of names to values."
            )
    if isinstance(entry, str):
        entry = imported(entry, setting)
    if isinstance(entry, type) and hasattr(entry, "open_tools"):
        check_arguments(functools.partial(entry, **settings), setting)
        return entry(**settings)
    if not callable(entry) and not isinstance(entry, ToolSource):
        raise EnvironmentContractError(f"{setting} holds {entry!r:.200}, which is neither a function nor a class.")
    return functools.partial(entry, **settings) if settings else entry


class _Episodes:
    """See :class:`~grpo_lightning.environments.episode.EpisodeFactory`."""

    def __init__(
        self,
        tools: ToolCalls,
        classes: dict[str | None, EnvironmentClass],
        hosts: Mapping[str | None, Host],
        sources: list[ToolSource],
    ) -> None:
        self.tools, self.classes, self.hosts, self.sources = tools, classes, hosts, sources
        self.rewarding = tuple({each.name: None for each in classes.values() if hasattr(each.kind, "get_reward")})
        self.has_tools = bool(tools.tools) or any(each.tools for each in classes.values())
        self.at_once = min((host.at_once for host in hosts.values() if host.at_once is not None), default=None)
        self.faults: dict[str, int] = tools.calls.faults

    def __call__(self, row: dict[str, Any]) -> Episode:
        if not self.classes:
            return ClassEpisode(self.tools, {}, None, has_step=False)
        described, name = self.class_of(row), self._name(row)
        hidden = () if name is None else (COLUMN,)  # it chose, and is no argument of reset, as in TRL
        return ClassEpisode(self.tools, described.tools, self.hosts[name].lease(), described.has_step, hidden)

    def class_of(self, row: dict[str, Any]) -> EnvironmentClass:
        """The class that the row names."""
        name = self._name(row)
        if name not in self.classes:
            raise EnvironmentContractError(
                f"A row has {COLUMN}={name!r}, but model.environment has {', '.join(map(str, self.classes))}. Each row "
                f"names its environment in the column {COLUMN!r}."
            )
        return self.classes[name]

    def _name(self, row: dict[str, Any]) -> str | None:
        return None if None in self.classes else row.get(COLUMN)

    async def close(self) -> None:
        for host in self.hosts.values():
            await host.close()
        for source in self.sources:
            source.close()
        self.tools.calls.close()
