"""Where the time from the command to the end of the first step goes."""

from __future__ import annotations

import os
import time
from pathlib import Path


def seconds_since_command() -> float:
    """How long this process has been running; since this module was imported, where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), starttime
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()


class StartTimes:
    """Seconds of each part of the start, one after the other, so that they add up.

    Example:
        >>> times = StartTimes()
        >>> times.mark("imports")
        >>> times.mark("data")
        >>> list(times.seconds), abs(sum(times.seconds.values()) - times.total) < 1e-6
        (['imports', 'data'], True)
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self.total = 0.0
        """Seconds from the command to the last mark."""
        self.is_complete = False

    def mark(self, name: str, note: str = "") -> None:
        """Charges the time since the last mark, or since the command, to ``name``; nothing once ``is_complete``.

        Args:
            name: Of a part of the start.
            note: What else to say of it.
        """
        if self.is_complete:
            return
        now = seconds_since_command()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.total
        self.total = now
        if note:
            self.notes[name] = note

    def __str__(self) -> str:
        parts = [f"{name} {took:.1f}{self._note(name)}" for name, took in self.seconds.items()]
        return f"First step done {self.total:.1f} s after the command: {', '.join(parts)}."

    def _note(self, name: str) -> str:
        return f" ({self.notes[name]})" if name in self.notes else ""
