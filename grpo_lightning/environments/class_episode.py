"""The episode of an environment class, with the tools beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from grpo_lightning.environments.calls import Calls
from grpo_lightning.environments.episode import EnvironmentFault, RaisedFault, ToolMistake, ToolResult
from grpo_lightning.environments.hosts import Lease
from grpo_lightning.environments.instance import Answer
from grpo_lightning.environments.output import as_text, cut
from grpo_lightning.environments.slots import CallSlots
from grpo_lightning.environments.tools import Tool, checked_arguments, unknown_tool
from grpo_lightning.messages import Message

ToolExceptions = Literal["fault", "tell"]


class ToolCalls:
    """Calls the tools that belong to no environment.

    Args:
        tools: By name.
        calls: Makes the calls.
        limit: Characters of what a tool gives.
        exceptions: ``fault`` drops the rollout of a tool that raises, ``tell`` tells the model, as TRL does.
    """

    def __init__(self, tools: Mapping[str, Tool], calls: Calls, limit: int, exceptions: ToolExceptions) -> None:
        self.tools, self.calls, self.limit, self.exceptions = tools, calls, limit, exceptions
        self._slots = {name: CallSlots(tool.concurrency) for name, tool in tools.items()}

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """What the tool says."""
        tool = self.tools[name]
        return await self.calls(
            lambda: tool.function(**arguments), lambda result: as_text(result, self.limit), name, self._slots[name]
        )


class ClassEpisode:
    """See :class:`~grpo_lightning.environments.episode.Episode`.

    Args:
        standalone: Tools of the run.
        own: Tools of the environment, by name.
        lease: The environment; None for a run with tools alone.
        has_step: Whether it answers turns of text.
        hidden: Columns that it is not told.
    """

    def __init__(
        self,
        standalone: ToolCalls,
        own: Mapping[str, Tool],
        lease: Lease | None,
        has_step: bool,
        hidden: Collection[str] = (),
    ) -> None:
        self.tools = [tool.schema for tool in (*standalone.tools.values(), *own.values())]
        self.done = False
        self.rewards: list[float] = []
        self._standalone, self._own, self._lease, self._has_step = standalone, own, lease, has_step
        self._hidden, self._has_started = hidden, False
        self._is_sound, self._is_closed = True, False

    async def reset(self, row: dict[str, Any]) -> list[Message]:
        """What the environment says first."""
        self.done, self.rewards, self._has_started = False, [], True
        if self._lease is None:
            return []
        told = {column: value for column, value in row.items() if column not in self._hidden}
        return list((await self._ask("reset", told)).messages)

    async def call(self, name: str, arguments: dict[str, Any] | str) -> ToolResult:
        """What the tool says, or what the model did wrong."""
        tools = {**self._standalone.tools, **self._own}
        if name not in tools:
            return ToolResult(unknown_tool(name, tools), mistake=True)
        try:
            read = checked_arguments(tools[name], arguments)
            if name in self._own:
                return ToolResult((await self._ask("call", name, read)).text)
            return ToolResult(await self._standalone.call(name, read))
        except ToolMistake as mistake:
            self._is_sound = True
            return ToolResult(cut(str(mistake), self._standalone.limit), mistake=True)
        except RaisedFault as fault:
            if self._standalone.exceptions == "fault":
                raise
            self._is_sound = True
            return ToolResult(cut(str({"error": fault.said}), self._standalone.limit), mistake=True)

    async def respond(self, text: str) -> list[Message] | None:
        """What ``step`` says to a turn of text; None without one."""
        if not self._has_step:
            return None
        try:
            answer = await self._ask("step", text)
        except ToolMistake as mistake:
            self._is_sound = True
            return [{"role": "user", "content": cut(str(mistake), self._standalone.limit)}]
        if answer.reward is not None:
            self.rewards.append(answer.reward)
        return list(answer.messages)

    async def final_reward(self) -> float | None:
        """What ``get_reward`` gives."""
        return (await self._ask("get_reward")).reward if self._lease and self._has_started else None

    async def close(self) -> None:
        """Gives the environment back, where nothing went wrong with it."""
        if self._lease is not None and not self._is_closed:
            self._is_closed = True
            await self._lease.give_back(self._is_sound)

    @property
    def environment(self) -> Any:
        """The user's object, for rewards, also behind the end; None without one, or where another process has it."""
        return self._lease.environment if self._lease else None

    async def _ask(self, operation: str, *arguments: Any) -> Answer:
        assert self._lease is not None and not self._is_closed, "the episode is closed"
        self._is_sound = False  # until it has answered: a call that is cancelled may still run
        try:
            answer = await self._lease.ask(operation, *arguments)
        except ToolMistake as mistake:
            if operation in ("call", "step"):
                raise
            raise EnvironmentFault(
                f"{operation} raised ToolMistake, and there is no turn to answer: {mistake}"
            ) from None
        self._is_sound = True
        self.done = self.done or answer.done
        return answer
