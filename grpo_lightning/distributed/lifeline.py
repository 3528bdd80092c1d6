"""One TCP connection from every rank to the first: the kernel ends it when a process dies, whatever that was doing.

A collective in which a rank is missing fails with a message about a socket (gloo), or not before the time limit of the
process group, half an hour (NCCL). Neither says who is missing. Here every rank tells where it is whenever it enters
another phase, so the others can name it, and they know within a second. A node that loses its power is noticed by
the kernel's keep-alive probes within half a minute.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""Seconds, seconds, probes: a silent host is given up after 30 s."""
CONNECT_SECONDS = 60.0
POLL_SECONDS = 0.5
MAX_LINE = 2**16


@dataclass
class Peer:
    """The other end of a connection."""

    socket: socket.socket
    rank: int | None = None
    """None until it has said who it is."""
    name: str = ""
    place: str = "its start"
    buffer: bytes = b""
    said_goodbye: bool = False


class Lifeline:
    """Knows where the other ranks are, and says so when one of them is gone.

    Args:
        rank: Of this process.
        address: Host of the first rank.
        share: Gives every rank the first one's value (``Strategy.broadcast``).
        on_lost: Called once, from a thread, with the sentence about the first rank that was lost, and whether it was
            asked to end.
    """

    def __init__(
        self, rank: int, address: str, share: Callable[[Any], Any], on_lost: Callable[[str, bool], None]
    ) -> None:
        self.rank = rank
        self.lost: str | None = None
        """The sentence about the first rank that was lost."""
        self.was_stopped = False
        """Whether that rank was asked to end, by Ctrl-C or SIGTERM."""
        self._knows = threading.Event()
        self._on_lost = on_lost
        self._name = f"process {os.getpid()} on {socket.gethostname()}"
        self._place = Peer.place
        self._peers: dict[socket.socket, Peer] = {}
        self._lock = threading.RLock()
        self._closed = False
        self._selector = selectors.DefaultSelector()
        host = address if address in ("127.0.0.1", "localhost") else ""  # one node: nobody else can connect
        self._listener = socket.create_server((host, 0), backlog=4096) if rank == 0 else None
        port = self._listener.getsockname()[1] if self._listener else None
        port, self._token = share((port, secrets.token_hex(16)))
        if self._listener:
            self._selector.register(self._listener, selectors.EVENT_READ)
        else:
            connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
            self._add(Peer(connection, rank=0, name=address))
        self.say({"token": self._token, "rank": rank, "name": self._name})
        # A worker forked by this process must not keep the connection open beyond this process's life.
        os.register_at_fork(after_in_child=self._close_sockets)
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def say(self, message: dict[str, Any]) -> None:
        """Sends to the first rank, or from it to all others; what has just died is left to the watching thread."""
        self._place = message.get("place", self._place)
        with self._lock:
            for peer in self._peers.values():
                self._tell(peer, message)

    def wait_for_loss(self, seconds: float) -> str | None:
        """What is known after at most so long: a broken collective shows before the reason for it is heard."""
        self._knows.wait(seconds)
        return self.lost

    def _tell(self, peer: Peer, message: dict[str, Any]) -> None:
        with suppress(OSError):
            peer.socket.sendall(json.dumps(message).encode() + b"\n")

    def leave(self, reason: dict[str, Any]) -> None:
        """Ends here; the others are told why: ``{"error": text}``, ``{"stopped": True}`` or ``{"bye": True}``."""
        self.say(reason)
        self._closed = True

    def close(self) -> None:
        """Ends without alarm, here and there."""
        self.leave({"bye": True})

    def _watch(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(POLL_SECONDS):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._add(Peer(connection))
                else:
                    self._read(self._peers[key.fileobj])  # type: ignore[index]
        self._close_sockets()

    def _add(self, peer: Peer) -> None:
        peer.socket.settimeout(None)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):
                peer.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with self._lock:
            self._peers[peer.socket] = peer
        self._selector.register(peer.socket, selectors.EVENT_READ)

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.socket.recv(65536)
        except OSError:
            data = b""
        *lines, peer.buffer = (peer.buffer + data).split(b"\n")
        try:
            for line in lines:
                self._hear(peer, json.loads(line))
        except (ValueError, TypeError, KeyError):  # no rank of this run speaks like that
            self._drop(peer)
        if not data or len(peer.buffer) > MAX_LINE:
            self._drop(peer)
            if peer.rank is not None and not peer.said_goodbye:
                self._lose(f"Rank {peer.rank} ({peer.name}) ended in {peer.place}.")

    def _hear(self, peer: Peer, message: dict[str, Any]) -> None:
        if "token" in message and message["token"] == self._token:
            peer.rank, peer.name = message["rank"], message["name"]
            self._tell(peer, {"name": self._name, "place": self._place})
        elif peer.rank is None:
            self._drop(peer)  # no rank of this run
        elif "place" in message:
            peer.place, peer.name = message["place"], message.get("name", peer.name)
        elif "error" in message:
            self._lose(f"Rank {peer.rank} ({peer.name}) failed in {peer.place}: {message['error']}")
        elif "stopped" in message:
            self._lose(f"Rank {peer.rank} ({peer.name}) was stopped in {peer.place}.", is_asked_for=True)
        elif "lost" in message:
            self._lose(message["lost"], message["is_asked_for"])
        elif "bye" in message:
            peer.said_goodbye = True

    def _drop(self, peer: Peer) -> None:
        with self._lock:
            if self._peers.pop(peer.socket, None) is not None:
                self._selector.unregister(peer.socket)
                peer.socket.close()

    def _lose(self, message: str, is_asked_for: bool = False) -> None:
        if self.lost is None and not self._closed:
            self.lost, self.was_stopped = message, is_asked_for
            if self.rank == 0:
                self.say({"lost": message, "is_asked_for": is_asked_for})
            self._on_lost(message, is_asked_for)
            self._knows.set()

    def _close_sockets(self) -> None:
        for peer in list(self._peers.values()):
            peer.socket.close()
        if self._listener:
            self._listener.close()
