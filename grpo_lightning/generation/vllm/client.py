"""HTTP to a vLLM server: its completions endpoint, and the development endpoints that move weights."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from grpo_lightning.errors import ExplainedError


class ServerUnavailable(ExplainedError, ConnectionError):
    """The server is gone, starting or dying; the same call may work later."""


class ServerNotReadyError(ExplainedError, TimeoutError):
    """The server has not answered in time after its start."""


class ServerRefused(ExplainedError, RuntimeError):
    """The server is well and says no, or fails in what it was asked for; the same call will not work later."""


class CallsEnded(RuntimeError):
    """The run has ended all calls to the server; nothing is wrong with it."""


HEALTH = "/health"
UNAVAILABLE = (502, 503, 504)
"""Statuses of a server that is starting or whose engine has died, and of a proxy in front of one that is gone."""


class VLLMClient:
    """Calls one server. Safe to use from several threads: every call has a connection of its own.

    A call that waits can be ended from another thread: completions of a long batch must not outlive an interrupted run.

    Args:
        host: Name or address.
        port: TCP port.
        request_timeout: Seconds that a single call may take.
    """

    def __init__(self, host: str, port: int, request_timeout: float) -> None:
        self.host = host
        self.port = port
        self.request_timeout = request_timeout
        self.where_to_look: Callable[[], str] = lambda: "Its own output says more."
        """Ends the message of an error that is the server's."""
        self.token: Callable[[], str | None] = lambda: None
        """Gives the server's token, asked for at every call: a server that is started again may have another."""
        self._connections: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def address(self) -> str:
        """``http://host:port``."""
        return f"http://{self.host}:{self.port}"

    def call(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        """The decoded answer, or None where it is empty.

        Raises:
            ServerUnavailable: If there is no answer, or the error of a server that is not healthy.
            ServerRefused: If a healthy server answers with an error.
            CallsEnded: After ``close``.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout or self.request_timeout)
        with self._lock:
            self._connections.add(connection)
        try:
            payload = None if body is None else json.dumps(body)
            connection.connect()
            self._check_open(connection)
            connection.request(method, path, payload, self._headers(payload))
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            if self._closed.is_set():
                raise CallsEnded(f"{method} {self.address}{path} was ended with the run.") from error
            raise ServerUnavailable(f"{method} {self.address}{path}: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
        if response.status >= 400:
            message = f"{method} {self.address}{path} was answered with {response.status}: {text[:500]}"
            raise self._error(response.status, path, message)
        try:
            return json.loads(text) if text.strip() else None
        except json.JSONDecodeError:
            return text

    def _headers(self, payload: str | None) -> dict[str, str]:
        headers = {"Content-Type": "application/json"} if payload else {}
        token = self.token()
        return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}

    def _error(self, status: int, path: str, message: str) -> Exception:
        """Whether a server that answers with an error is lost: one whose engine dies answers for a moment longer."""
        if status < 500:
            return ServerRefused(message)
        if status in UNAVAILABLE or path == HEALTH or not self.is_healthy():
            return ServerUnavailable(message)
        return ServerRefused(f"{message}\nThe server is healthy, so it is not waited for. {self.where_to_look()}")

    def hang_up(self) -> None:
        """Ends the calls under way; they raise ServerUnavailable. The server drops their requests."""
        with self._lock:
            for connection in self._connections:
                open_socket = connection.sock  # the call's own thread may let go of it at any time
                if open_socket is not None:
                    with contextlib.suppress(OSError):
                        open_socket.shutdown(socket.SHUT_RDWR)
            self._connections.clear()

    def close(self) -> None:
        """Ends the calls under way, and refuses others until ``open``."""
        self._closed.set()
        self.hang_up()

    def open(self) -> None:
        """Allows calls again."""
        self._closed.clear()

    def _check_open(self, connection: http.client.HTTPConnection) -> None:
        """Ends a call that was still connecting, or came later."""
        with self._lock:
            if self._closed.is_set() or connection not in self._connections:
                raise ConnectionAbortedError("ended by this run")

    def post(self, path: str, body: Any = None, **query: str) -> Any:
        """POST with a JSON body."""
        question = "?" + "&".join(f"{name}={quote(value)}" for name, value in query.items()) if query else ""
        return self.call("POST", path + question, body)

    def is_healthy(self) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            self.call("GET", HEALTH, timeout=5.0)
        except (ServerUnavailable, ServerRefused):
            return False
        return True

    def wait_until_healthy(self, seconds: float, while_waiting: Callable[[], None] = lambda: None) -> None:
        """Asks again and again, less and less often, up to every 2 seconds.

        Args:
            seconds: Until it gives up.
            while_waiting: Called before every question; may raise.

        Raises:
            TimeoutError: If the server was not healthy by then.
        """
        deadline, pause = time.monotonic() + seconds, 0.05
        while True:
            while_waiting()
            if self.is_healthy():
                return
            if time.monotonic() + pause > deadline:
                raise ServerNotReadyError(
                    f"no healthy vLLM server at {self.address} within {seconds:.0f} s "
                    "(model.generator.init_args.timeout). Start one with: python -m grpo_lightning serve "
                    f"--model ... --port {self.port}; or set model.generator.init_args.launch=true. Its own output says "
                    "why it died."
                )
            self._closed.wait(pause)
            pause = min(pause * 1.5, 2.0)

    def pause(self, attempt: int) -> None:
        """Before a further attempt at what a server that seems healthy did not answer; ends when the run does.

        Args:
            attempt: 0 for the first repetition: half a second, then twice as long each time, up to 10 seconds.
        """
        self._closed.wait(min(0.5 * 2.0**attempt, 10.0))

    def collective_rpc(self, method: str, **kwargs: Any) -> Any:
        """Calls a method of every worker of the engine."""
        return self.post("/collective_rpc", {"method": method, "kwargs": kwargs})
