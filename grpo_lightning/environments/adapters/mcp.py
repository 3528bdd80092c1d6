"""Tools of a server that speaks the Model Context Protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from grpo_lightning.concurrency.event_loop import EventLoopThread
from grpo_lightning.environments.episode import EnvironmentContractError, ToolMistake
from grpo_lightning.environments.tools import Tool

START_LIMIT = 60.0
"""Seconds in which a server must have listed its tools."""
CLOSE_LIMIT = 10.0
"""Seconds for the end of a session: a server that was started has two to end by itself, two more before it is killed."""


class MCPTools:
    """The tools of one server, over one session that all rollouts share: for tools without state.

    Args:
        command: Starts a server that speaks over its standard input and output; or
        url: of a server that runs already (streamable HTTP).
        environment: Variables for ``command``.
        names: Tools to offer; None for all.
        concurrency: Calls at once of each tool; 0 for no limit.

    Raises:
        EnvironmentContractError: If both or neither of command and url are given.
    """

    def __init__(
        self,
        command: list[str] | None = None,
        url: str | None = None,
        environment: dict[str, str] | None = None,
        names: list[str] | None = None,
        concurrency: int = 0,
    ) -> None:
        if (command is None) == (url is None):
            raise EnvironmentContractError("MCPTools takes command, which starts a server, or url of one that runs.")
        self.command, self.url, self.environment = command, url, environment
        self.names, self.concurrency = names, concurrency
        self._loop = EventLoopThread()
        self._client: Any = None
        self._end: asyncio.Event | None = None
        self._session: Future[None] | None = None

    def open_tools(self) -> list[Tool]:
        """Connects and asks which tools there are.

        Raises:
            EnvironmentContractError: If the server does not answer, or has no tool that ``names`` has.
        """
        listed: Future[list[Any]] = Future()
        self._session = self._loop.start(self._hold_session(listed))
        try:
            found = {tool.name: tool for tool in listed.result(START_LIMIT + CLOSE_LIMIT)}
        except Exception as error:
            self.close()
            raise EnvironmentContractError(
                f"The MCP server {self.url or ' '.join(self.command or [])} gave no tools: {error!r:.500}"
            ) from error
        missing = [name for name in self.names or () if name not in found]
        if missing:
            self.close()
            raise EnvironmentContractError(
                f"The MCP server has no tool {', '.join(missing)}. It has {', '.join(found) or 'none'}."
            )
        return [
            Tool(_schema(tool), self._function(name), self.concurrency)
            for name, tool in found.items()
            if self.names is None or name in self.names
        ]

    def close(self) -> None:
        """Ends the session, and a server that was started."""
        if self._end is not None and self._session is not None:
            self._loop.loop.call_soon_threadsafe(self._end.set)
            wait([self._session], CLOSE_LIMIT)  # a loop that stops earlier leaves the server behind
            self._end = None
        self._loop.close()

    async def _hold_session(self, listed: Future[list[Any]]) -> None:
        """Opens and closes the session in one task, as its cancel scopes demand."""
        self._end = asyncio.Event()
        try:
            async with asyncio.timeout(START_LIMIT) as start, Client(self._server()) as client:
                self._client = client
                tools, cursor = [], None
                while True:
                    page = await client.list_tools(cursor=cursor)
                    tools += page.tools
                    cursor = page.next_cursor
                    if not cursor:
                        break
                start.reschedule(None)
                listed.set_result(tools)
                await self._end.wait()
        except Exception as error:
            if listed.done():
                raise
            listed.set_exception(error)

    def _server(self) -> Any:
        if self.command is None:
            return self.url
        return stdio_client(StdioServerParameters(command=self.command[0], args=self.command[1:], env=self.environment))

    def _function(self, name: str) -> Callable[..., Any]:
        async def call(**arguments: Any) -> str:
            # The session lives on a loop of its own.
            result = await asyncio.wrap_future(self._loop.start(self._client.call_tool(name, arguments)))
            text = "\n".join(block.text for block in result.content if block.type == "text")
            if result.is_error:  # the protocol's way to tell the model
                raise ToolMistake(text or f"{name} failed.")
            return text

        return call


def _schema(tool: Any) -> dict[str, Any]:
    parameters = dict(tool.input_schema)
    parameters.setdefault("properties", {})
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description or "", "parameters": parameters},
    }
