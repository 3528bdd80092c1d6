"""Ends everything that a child process has started, also what left its group or outlived it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

VARIABLE = "GRPO_LIGHTNING_GRADER"
"""In the environment of a grading process and, inherited, of all that it starts; its value names that one process."""
ROUNDS = 10
"""A process that is found may have started another one meanwhile."""


def end_tree(leader: int) -> None:
    """Kills a child that was started as the leader of a group, the group, and all children of theirs, in whatever session.

    Children are found by their parents, so that one with an environment of its own is, too. The leader is stopped first: it
    starts no more, and its own are still known as its own.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(leader, signal.SIGSTOP)
    found = _descendants(leader)
    end_group(leader)
    _kill(found)


def end_group(leader: int) -> None:
    """Kills the process group of a child that was started as its leader; nothing where none of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_descendants(token: str) -> None:
    """Kills every process of this user whose environment names ``token``, but for the caller's own.

    Looked for in /proc, so that a process which made itself a session of its own, or whose parents are gone, is found,
    too. Where there is no /proc (not on Linux), nothing is done.
    """
    for _ in range(ROUNDS):
        found = list(_named(token))
        _kill(found)
        if not found:
            return


def end_started() -> None:
    """Kills all that this process has started: its children, theirs, and those that the environment tells of."""
    _kill(_descendants(os.getpid()))
    if VARIABLE in os.environ:
        end_descendants(os.environ[VARIABLE])


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _named(token: str) -> Iterator[int]:
    wanted = f"{VARIABLE}={token}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if int(entry.name) != os.getpid() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def _descendants(pid: int) -> list[int]:
    """Children of a process, theirs, and so on; nothing where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, ()))
    for each in found:  # which grows meanwhile
        found += children.get(each, ())
    return found
