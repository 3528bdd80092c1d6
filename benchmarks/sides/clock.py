"""Where a step's time and memory go: exclusive wall seconds, process CPU seconds and peak bytes of nested phases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch

TRAINING = {name: "training" for name in ("old_and_reference", "forward", "backward", "optimizer")}
"""Phases of one queue of work: where a pass ends, the host is ahead of the device, and a synchronisation would stop both."""
OTHER = "other"
"""What no named phase covers: loading prompts, tokenising, metrics, hooks of the trainer."""


class PhaseClock:
    """Charges time to the innermost phase that is running.

    The device is synchronised where a phase starts and ends, so that queued work is charged to the phase that queued
    it. A process's CPU seconds include all of its threads, and none of other processes.

    Args:
        device: cpu or cuda.
        detailed: False leaves out phases and their synchronisations, to see what these cost.
        together: Phases that are charged to another name, with no synchronisation from one to the next of that name.
    """

    def __init__(self, device: str, detailed: bool = True, together: Mapping[str, str] | None = None) -> None:
        self.cuda = device == "cuda"
        self.detailed = detailed
        self.together = together or {}
        self.steps: list[dict[str, Any]] = []
        self.after_step: Callable[[], None] = lambda: None
        """Called between steps, in nobody's time."""
        self.bytes_before = 0
        """In use at the start of the first step: libraries, model, and on a GPU an engine that is already there."""
        self._running = [OTHER]
        self._counts: dict[str, int] = {}
        self._notes: dict[str, float] = {}
        self._reset()

    def _reset(self) -> None:
        self._wall: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        self._peak: dict[str, int] = {}
        self._mark = self._now()

    def _now(self) -> tuple[float, float]:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def _charge(self) -> None:
        name, (wall, cpu) = self._running[-1], self._now()
        self._wall[name] = self._wall.get(name, 0.0) + wall - self._mark[0]
        self._cpu[name] = self._cpu.get(name, 0.0) + cpu - self._mark[1]
        self._peak[name] = max(self._peak.get(name, 0), take_peak_bytes(self.cuda))
        self._mark = self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges the block to ``name``, less the phases inside it."""
        name = self.together.get(name, name)
        if not self.detailed or name == self._running[-1]:
            yield
            return
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def timed(self, name: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, charged to a phase; its name may depend on when it is called."""

        @wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name if isinstance(name, str) else name()):
                return function(*args, **kwargs)

        return charged

    def count(self, **counts: int) -> None:
        """Adds to the step's counters."""
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, 0) + int(value)

    def note(self, **numbers: float) -> None:
        """Keeps numbers with the step that is running."""
        self._notes |= numbers

    def start(self) -> None:
        """Forgets what came before the first step."""
        take_peak_bytes(self.cuda)
        self.bytes_before = torch.cuda.memory_allocated() if self.cuda else resident_bytes()
        self._counts.clear()
        self._reset()

    def end_step(self) -> None:
        """Closes the record of a step, which is everything since the last one's end."""
        self._charge()
        record = {"wall_s": self._wall, "cpu_s": self._cpu, "peak_bytes": self._peak, "counts": dict(self._counts)}
        self.steps.append(record | {"notes": dict(self._notes)})
        self._counts.clear()
        self._notes.clear()
        self.after_step()
        self._reset()


def take_peak_bytes(cuda: bool) -> int:
    """Most bytes in use since the last call: of torch's allocator on the device, or of the process on the CPU."""
    if cuda:
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    peak = resident_bytes("VmHWM")
    with suppress(OSError):  # without the permission the peak is that of the whole run so far
        Path("/proc/self/clear_refs").write_text("5")
    return peak


def resident_bytes(field: str = "VmRSS") -> int:
    """VmRSS, memory of this process now, or VmHWM, the most it had; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    sizes = [line.split()[1] for line in status.read_text().splitlines() if line.startswith(field + ":")]
    return int(sizes[0]) * 1024
