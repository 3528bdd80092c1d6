"""How far a generation has come that may take longer than there is time: tool calls and seconds, in a file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from sides.clock import PhaseClock
from sides.tool_workload import Store, ToolWorkload

EVERY_SECONDS = 0.5


class GenerationWatch:
    """Sets the tool's waits for each step, and writes down every half second how far a step that counts has come.

    In steps that warm up the tool answers at once: they are there for engines and caches, not for the tool.

    Args:
        workload: Has the waits.
        clock: Knows the step.
        file: Is written while a generation that counts is under way.
    """

    def __init__(self, workload: ToolWorkload, clock: PhaseClock, file: Path) -> None:
        self.workload, self.clock, self.file = workload, clock, file
        self._started: float | None = None
        self._calls_before = 0
        file.unlink(missing_ok=True)
        threading.Thread(target=self._write_on, daemon=True).start()

    def watched(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """The function that samples all rollouts of a step, watched."""

        @wraps(generate)
        def and_watched(*args: Any, **kwargs: Any) -> Any:
            counts = len(self.clock.steps) >= self.workload.warmup_steps
            Store.seconds = (self.workload.shortest_call, self.workload.longest_call) if counts else (0.0, 0.0)
            self._calls_before, self._started = Store.calls, time.perf_counter() if counts else None
            try:
                return generate(*args, **kwargs)
            finally:
                self._started = None
                self.clock.note(calls=Store.calls - self._calls_before)

        return and_watched

    def _write_on(self) -> None:
        while True:
            time.sleep(EVERY_SECONDS)
            started = self._started
            if started is not None:
                come = {"generation_s": time.perf_counter() - started, "calls": Store.calls - self._calls_before}
                part = self.file.with_suffix(".part")
                part.write_text(json.dumps(come) + "\n", encoding="utf-8")
                part.replace(self.file)
