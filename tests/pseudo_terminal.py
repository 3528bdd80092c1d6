"""A command in a terminal of its own: what a person sees, by a terminal emulator that reads what the command wrote."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pyte = pytest.importorskip("pyte")


Line = Sequence[Any]
"""The characters of a line, each with its colours: pyte's ``Char``."""


def run_in_terminal(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], columns: int = 80, rows: int = 24
) -> list[str]:
    """Every line that the terminal shows or has scrolled out of sight, in order, once the command has ended.

    Raises:
        AssertionError: If the command failed; with what it showed.
    """
    return [text_of(line) for line in lines_in_terminal(command, cwd, environment, columns, rows)]


def text_of(line: Line) -> str:
    """Its characters, without those that end it and show nothing."""
    return "".join(character.data for character in line).rstrip()


def lines_in_terminal(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], columns: int = 80, rows: int = 24
) -> list[Line]:
    """As ``run_in_terminal``, with colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=dict(environment))
    os.close(theirs)
    screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=1.0)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            written = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not written:
            break
        stream.feed(written)
    os.close(ours)
    shown = [*screen.history.top, *(screen.buffer[row] for row in range(rows))]
    lines = [[line[column] for column in range(columns)] for line in shown]
    assert process.wait() == 0, "\n".join(map(text_of, lines))
    return lines
