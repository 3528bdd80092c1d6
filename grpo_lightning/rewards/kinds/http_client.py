"""JSON over HTTP for remote rewards: bounded, with retries."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

MAX_RESPONSE = 8 * 2**20
"""Bytes; no score needs more."""
MAX_PAUSE = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class RemoteError(RuntimeError):
    """The server could not be reached, or gave no usable answer, after all attempts."""


@dataclass(frozen=True)
class HTTPClient:
    """Posts JSON to one address.

    Args:
        url: Complete address of the endpoint.
        timeout: Seconds per attempt.
        retries: Further attempts after a lost connection, a time-out, a busy or a failing server.
        backoff: Seconds before the second attempt, doubled for each further one.
        api_key_env: Environment variable with the key, sent as a bearer token; the key itself is never in a config.
        headers: Further headers.

    Raises:
        ValueError: If a setting cannot work.
    """

    url: str
    timeout: float = 30.0
    retries: int = 3
    backoff: float = 0.5
    api_key_env: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"url={self.url!r} is no address. Give the whole of it, as in http://127.0.0.1:8000/classify."
            )
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise ValueError(
                f"timeout={self.timeout} must be above 0 seconds, retries={self.retries} and backoff={self.backoff} 0 or "
                "more."
            )
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise ValueError(f"api_key_env={self.api_key_env!r} names an environment variable that is not set.")

    @property
    def longest(self) -> float:
        """Seconds that ``post`` may take in all."""
        pauses = sum(min(self.backoff * 2**attempt, MAX_PAUSE) for attempt in range(self.retries))
        return (self.retries + 1) * self.timeout + max(pauses, MAX_PAUSE * min(self.retries, 1)) + 5.0

    async def post(self, body: Mapping[str, Any]) -> Any:
        """The server's answer to ``body``, as JSON.

        Raises:
            RemoteError: With the address, the number of attempts and what the last one met.
        """
        import aiohttp

        headers = dict(self.headers)
        if self.api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        problem, pause = "", 0.0
        deadline = asyncio.get_running_loop().time() + self.longest - 5.0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout), headers=headers) as session:
            for attempt in range(self.retries + 1):
                if attempt:
                    await asyncio.sleep(min(pause, max(0.0, deadline - asyncio.get_running_loop().time())))
                pause = min(self.backoff * 2**attempt, MAX_PAUSE)
                try:
                    async with session.post(self.url, json=dict(body), allow_redirects=False) as response:
                        content = await _read(response)
                        if response.status == 200:
                            return json.loads(content)
                        problem = f"HTTP {response.status}: {content[:300].decode(errors='replace')}"
                        if response.status not in RETRIED:
                            break
                        pause = max(pause, _retry_after(response.headers.get("Retry-After")))
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    problem = f"{type(error).__name__}: {error}" if str(error) else f"no answer in {self.timeout:g} s"
        raise RemoteError(f"{self.url} gave no usable answer in {attempt + 1} attempts. The last: {problem}")


async def _read(response: Any) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        content += chunk
        if len(content) > MAX_RESPONSE:
            raise ValueError(f"the answer is longer than {MAX_RESPONSE} bytes")
    return bytes(content)


def _retry_after(value: str | None) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or gives a date."""
    return min(float(value), MAX_PAUSE) if value is not None and value.isdigit() else 0.0
