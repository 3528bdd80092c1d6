"""What stands before the routes of a vLLM server: its token and its names, checked inside the server itself.

vLLM's ``--api-key`` guards ``/v1`` alone. Training needs the routes that replace weights and call methods of the workers, and
a page in a browser on the same machine can post to loopback (as text/plain, without asking first; by its own name, once that
name points to 127.0.0.1). So all but a few reading routes want the token, and every request one of the server's own names.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from grpo_lightning.generation.vllm.serving.owner import RUN_HEADER, WeightsOwner
from grpo_lightning.generation.vllm.serving.supervisor_watch import watch_supervisor
from grpo_lightning.generation.vllm.serving.token import HOSTS_VARIABLE, TOKEN_VARIABLE

OPEN_ROUTES = frozenset({"/health", "/ping", "/version", "/v1/models", "/load", "/metrics"})
"""May be read (GET and HEAD) without the token: they say that the server lives, and change nothing."""

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


class TokenGuard:
    """ASGI middleware (``vllm --middleware``); reads the token from the environment.

    It also keeps two runs apart that would sample from each other's weights, and ends the server with what started it.

    Args:
        app: The server.

    Raises:
        RuntimeError: If the environment has no token: an unguarded server does not start.
    """

    def __init__(self, app: App) -> None:
        token = os.environ.get(TOKEN_VARIABLE)
        if not token:
            raise RuntimeError(
                f"{TOKEN_VARIABLE} is not set, and a server without a token is open to every local user."
            )
        watch_supervisor()
        self.app = app
        self._owner = WeightsOwner()
        self._token = hashlib.sha256(token.encode()).digest()
        further = os.environ.get(HOSTS_VARIABLE, "").split(",")
        names = ["localhost", socket.gethostname(), socket.getfqdn(), *further]
        self._names = {name.strip().lower() for name in names if name.strip()}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Passes the request on, or answers it with 401, 403 or, where another run has the server, 409."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._is_own(host):
            reason = (
                f"Host {host[:100]!r} is no name of this server. Add it to {HOSTS_VARIABLE} where the server starts."
            )
            return await _refuse(scope, send, 403, reason)
        if not _is_open(scope) and not self._has_token(headers.get(b"authorization", b"")):
            reason = (
                f"this route wants the server's token (Authorization: Bearer ...). Set {TOKEN_VARIABLE} to the same value "
                "for the run and for grpo_lightning serve; on one machine a run finds the file that serve has named."
            )
            return await _refuse(scope, send, 401, reason)
        run = headers.get(RUN_HEADER.lower().encode())
        if run and not _is_open(scope) and (taken := self._owner.why_refused(run.decode("latin-1"), scope["path"])):
            return await _refuse(scope, send, 409, taken)
        return await self.app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        """Whether it is an address, which no other name can be made to stand for, or a name of this machine."""
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._names
        return True

    def _has_token(self, header: bytes) -> bool:
        scheme, _, token = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(token).digest(), self._token)


def _is_open(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    return scope["method"] == "OPTIONS" or (scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_ROUTES)


async def _refuse(scope: Scope, send: Any, status: int, reason: str) -> None:
    if scope["type"] != "http":
        return await send({"type": "websocket.close", "code": 1008, "reason": ""})
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    return await send({"type": "http.response.body", "body": body})
