"""Whose weights a server holds: a run that sends its own takes the server from the run before, which must not go on with them."""

from __future__ import annotations

import os
import secrets
import socket
from datetime import datetime

RUN_HEADER = "X-Grpo-Lightning-Run"
"""Of every request of a run that has begun to send weights: the run's name."""


def new_run() -> str:
    """A name for a run, or for its next start: where it runs, and a random number."""
    host = socket.gethostname().encode("ascii", "replace").decode()
    return f"process {os.getpid()} on {host} {secrets.token_hex(8)}"


SENDING = frozenset(
    {
        "/pause",
        "/collective_rpc",
        "/get_world_size",
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/v1/load_lora_adapter",
    }
)
"""Routes of which one is the first that a run asks for to send weights."""


class WeightsOwner:
    """The run whose weights a server holds, as its requests tell.

    A run takes the server by sending weights. From then on the run that had it is refused, for its next completions would be another
    policy's, and its next weights would spoil the other run's.
    """

    def __init__(self) -> None:
        self._run: str | None = None
        self._since = ""
        self._earlier: set[str] = set()

    def why_refused(self, run: str, route: str) -> str | None:
        """None for the run that has the server, or takes it; else a sentence.

        Args:
            run: From ``new_run``.
            route: What it asks for.
        """
        if self._run in (None, run) or (route in SENDING and run not in self._earlier):
            self._take(run, route)
            return None
        assert self._run is not None
        return (
            f"since {self._since} this server has had the weights of another run ({self._run.rpartition(' ')[0]}). A server "
            "has one run at a time: start another one (grpo_lightning serve --port ...), and go on from the checkpoint."
        )

    def _take(self, run: str, route: str) -> None:
        """Of a server that has just been started again, ranks that ask for completions take nothing."""
        if run == self._run or route not in SENDING:
            return
        if self._run is not None:
            self._earlier.add(self._run)
        self._run, self._since = run, datetime.now().strftime("%H:%M:%S")
