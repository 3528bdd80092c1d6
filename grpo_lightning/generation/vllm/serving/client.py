"""HTTP to a vLLM server: its endpoints for completions, and the development endpoints that move weights."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from grpo_lightning.concurrency.event_loop import EventLoopThread
from grpo_lightning.errors import ExplainedError
from grpo_lightning.generation.vllm.serving.owner import RUN_HEADER

logger = logging.getLogger(__name__)

T = TypeVar("T")


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


def result_of(answer: Future[T]) -> T:
    """What came back; waits for it.

    Raises:
        CallsEnded: If the client was closed meanwhile.
    """
    try:
        return answer.result()
    except CancelledError:
        raise CallsEnded("A call to the vLLM server was ended with the run.") from None


class VLLMClient:
    """Calls one server, on an event loop in a thread of its own. Safe to use from several threads.

    Every call has a connection of its own. A call that waits can be ended from another thread: completions of a long batch
    must not outlive an interrupted run.

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
        self.run: str | None = None
        """Names the run whose weights the server holds, once it sends them: the server refuses it when another run does."""
        self._loop = EventLoopThread("vllm client")
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def address(self) -> str:
        """``http://host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host  # of version 6
        return f"http://{host}:{self.port}"

    def start(self, calls: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine that awaits ``send``; cancelling the future ends its calls, and the server drops their requests.

        Raises:
            CallsEnded: After ``close``.
        """
        with self._lock:  # what came after the loop's end would wait for ever
            if self._closed.is_set():
                calls.close()
                raise CallsEnded(f"The run has ended its calls to {self.address}.")
            return self._loop.start(calls)

    def call(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        """The decoded answer, or None where it is empty; waits for it.

        Raises:
            ServerUnavailable: If there is no answer, or the error of a server that is not healthy.
            ServerRefused: If a healthy server answers with an error.
            CallsEnded: After ``close``.
        """
        answer = self.start(self.send(method, path, body, timeout))
        try:
            return result_of(answer)
        except BaseException:  # Ctrl-C, for example
            answer.cancel()
            raise

    async def send(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        """``call``, on the client's own loop."""
        import aiohttp  # only runs on a server pay for it

        payload = None if body is None else json.dumps(body)
        limit = aiohttp.ClientTimeout(total=timeout or self.request_timeout)
        connector = aiohttp.TCPConnector(force_close=True)  # a kept connection may have been closed by the server
        made: dict[str, Any] = {"connector": connector, "timeout": limit, "headers": self._headers(payload)}
        try:
            async with (
                aiohttp.ClientSession(**made) as session,
                session.request(method, self.address + path, data=payload, allow_redirects=False) as response,
            ):
                text = (await response.read()).decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = getattr(error, "os_error", error)
            raise ServerUnavailable(f"{method} {self.address}{path}: {type(reason).__name__}: {reason}") from error
        if response.status >= 400:
            message = f"{method} {self.address}{path} was answered with {response.status}: {text[:500]}"
            raise await self._error(response.status, path, message)
        try:
            return json.loads(text) if text.strip() else None
        except json.JSONDecodeError:
            return text

    def _headers(self, payload: str | None) -> dict[str, str]:
        headers = {"Content-Type": "application/json"} if payload else {}
        if self.run is not None:
            headers[RUN_HEADER] = self.run
        token = self.token()
        return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}

    async def _error(self, status: int, path: str, message: str) -> Exception:
        """Whether a server that answers with an error is lost: one whose engine dies answers for a moment longer."""
        if status < 500:
            return ServerRefused(message)
        if status in UNAVAILABLE or path == HEALTH or not await self._answers_well():
            return ServerUnavailable(message)
        return ServerRefused(f"{message}\nThe server is healthy, so it is not waited for. {self.where_to_look()}")

    async def _answers_well(self) -> bool:
        try:
            await self.send("GET", HEALTH, timeout=5.0)
        except (ServerUnavailable, ServerRefused):
            return False
        return True

    def close(self) -> None:
        """Ends the calls under way, and refuses others until ``open``."""
        with self._lock:
            self._closed.set()
            self._loop.close()

    def open(self) -> None:
        """Allows calls again."""
        self._closed.clear()

    def post(self, path: str, body: Any = None) -> Any:
        """POST with a JSON body."""
        return self.call("POST", path, body)

    def is_healthy(self) -> bool:
        """Whether the server answers and its engine lives."""
        return result_of(self.start(self._answers_well()))

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

    def expect(self, seconds: float) -> None:
        """Waits for a server that somebody else starts, and says where and how long before it does: it may never come.

        Args:
            seconds: Until it gives up.

        Raises:
            TimeoutError: If the server was not healthy by then.
        """
        if not self.is_healthy():
            logger.warning(
                "No vLLM server answers at %s yet; waiting up to %.0f s (model.generator.init_args.timeout). Start one with: "
                "python -m grpo_lightning serve --model ... --port %d",
                self.address,
                seconds,
                self.port,
            )
            self.wait_until_healthy(seconds)

    def pause(self, attempt: int) -> None:
        """Before a further attempt at what a server that seems healthy did not answer; ends when the run does.

        Args:
            attempt: 0 for the first repetition: half a second, then twice as long each time, up to 10 seconds.
        """
        self._closed.wait(min(0.5 * 2.0**attempt, 10.0))
