"""A server of tools over standard input and output."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("numbers")


@server.tool()
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return str(a + b)


@server.tool()
def look_up(page: str) -> str:
    """Finds a page."""
    raise ToolError(f"there is no page {page}")


if __name__ == "__main__":
    server.run("stdio")
