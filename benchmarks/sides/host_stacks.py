"""Where a thread's Python spends its time: its stack, looked at every few milliseconds by another thread."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from types import FrameType


class HostStacks:
    """A context manager around what is looked at; costs the thread some percent of its time.

    Args:
        below: Counts looks in which this function, as ``file.py:name``, is on the stack, and names what lies above it.
        seconds: Between two looks.
    """

    def __init__(self, below: str, seconds: float = 0.001) -> None:
        self.below, self.seconds = below, seconds
        self.looks = 0
        self.inclusive: Counter[str] = Counter()
        self._thread_of_interest = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> HostStacks:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def shares(self, count: int = 60) -> dict[str, float]:
        """Of all looks, the share in which a function was on the stack: the ``count`` largest, in percent."""
        return {name: round(100 * n / max(1, self.looks), 1) for name, n in self.inclusive.most_common(count)}

    def _look(self) -> None:
        while not self._ended.wait(self.seconds):
            above = self._above(sys._current_frames().get(self._thread_of_interest))
            if above is not None:
                self.looks += 1
                self.inclusive.update(set(above))

    def _above(self, frame: FrameType | None) -> list[str] | None:
        names = []
        while frame is not None:
            code = frame.f_code
            name = "/".join(code.co_filename.split("/")[-2:]) + f":{code.co_name}"
            if name.endswith(self.below):
                return names
            names.append(name)
            frame = frame.f_back
        return None
