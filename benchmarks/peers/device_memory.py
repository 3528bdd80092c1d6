"""Memory of a device as nvidia-smi sees it: of all processes, which is where a peer has its trainer and its engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from typing import Any, Self

SECONDS = 0.5


def _ask(field: str) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "-i", first, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def device_name() -> str:
    """Of the first GPU that is visible."""
    return _ask("name") or "cpu"


class DevicePeak:
    """The most bytes that were in use while the block ran; 0 without a GPU.

    Example:
        >>> with DevicePeak() as peak:
        ...     pass
        >>> peak.bytes >= 0
        True
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            used = _ask("memory.used")
            if used is not None and used.isdigit():
                self.bytes = max(self.bytes, int(used) * 2**20)
            if self._over.wait(SECONDS):
                return
