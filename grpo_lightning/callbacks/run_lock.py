"""Two runs in one folder would destroy each other: the first holds a lock, which the second is refused by."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from grpo_lightning.errors import ExplainedError

NAME = "run.lock"


class RunLock:
    """The lock of a run's folder, held until the process ends, however it ends: no lock of a dead run is left.

    The file tells who holds it; that it is held, the kernel knows. Child processes do not inherit the lock.

    Args:
        root: ``trainer.default_root_dir``.

    Raises:
        ExplainedError: If another process holds it, with its pid and start time, or if the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        path = root / NAME
        if root.exists() and not root.is_dir():
            raise ExplainedError(
                f"trainer.default_root_dir={root} is a file, and a run writes a folder. Name another, or move the file away."
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise ExplainedError(
                f"trainer.default_root_dir={root} cannot be written ({error}). Set one that can, or free disk space."
            ) from error
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(path)
            self._file.close()
            raise ExplainedError(
                f"trainer.default_root_dir={root} belongs to a run that is going on{holder}. Two runs in one folder would "
                "destroy each other. Set another trainer.default_root_dir, or end that run first."
            ) from error
        except OSError:  # a file system without locks
            return
        self._write()

    def release(self) -> None:
        """Lets another run have the folder. The file stays: who is about to open it must not lock one that is gone."""
        with suppress(OSError):  # what a full disk did not take is written again, and the file closed all the same
            self._file.close()

    def _write(self) -> None:
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        with suppress(OSError):  # the lock holds without it
            self._file.truncate(0)
            self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": now}) + "\n")
            self._file.flush()


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f": process {who['pid']} on {who['host']}, started {who['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
