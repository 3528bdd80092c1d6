"""What a program and its test say to each other: one line of JSON a message, over two pipes."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

MAX_LINE = 64 * 2**20
"""Bytes of one message."""


class Closed(Exception):
    """The other side has ended, or says what is no message."""


class Wire:
    """Sends and receives messages.

    Args:
        read, write: File descriptors.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read: BinaryIO = open(read, "rb")  # noqa: SIM115 - open as long as the process
        self._write: BinaryIO = open(write, "wb")  # noqa: SIM115

    def send(self, message: list[Any]) -> None:
        """Writes one message.

        Raises:
            Closed: If nobody reads it.
        """
        try:
            self._write.write(json.dumps(message).encode("ascii") + b"\n")
            self._write.flush()
        except OSError as error:
            raise Closed(str(error)) from None

    def receive(self) -> list[Any]:
        """The next message.

        Raises:
            Closed: If there is none, or it is no list in JSON.
        """
        line = self._read.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise Closed("the end")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise Closed("no JSON") from None
        if not isinstance(message, list) or not message or not isinstance(message[0], str):
            raise Closed("no message")
        return message
