"""Notices training passes that a GPU waits for: those of small models and small steps, where launching takes longest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WARM_UP = 3
"""First steps, which compile, capture and measure."""
STEPS = 5
"""In a row, of which each has to be bound by the host."""
LEAST_WAIT = 0.1
"""Of the time of passes: a host that waits for less of it had not finished much before the GPU had."""


class HostWatch:
    """Tells once when the host bounds the passes of several steps in a row.

    The host queues the passes of a step and then waits for their gradient. Where it hardly waits, the GPU has nothing queued
    for most of the step.

    Args:
        tell: Called once, with the seconds that the passes of a step take, a median, and the share of them that the host waited.
        clock: In seconds.
    """

    def __init__(self, tell: Callable[[float, float], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self._tell, self._clock = tell, clock
        self._steps: int | None = 0
        """Seen; None once there is no more to tell."""
        self._began: float | None = None
        self._bound: list[tuple[float, float]] = []

    def begin(self) -> None:
        """Call it before each pass of a step: the first one counts."""
        if self._began is None:
            self._began = self._clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the passes of a step, which ends it."""
        queued = self._clock()
        yield
        ended, began = self._clock(), self._began
        self._began = None
        if self._steps is None or began is None:
            return
        self._steps += 1
        if self._steps > WARM_UP:
            self._add(ended - began, ended - queued)

    def _add(self, seconds: float, waited: float) -> None:
        self._bound = [*self._bound, (seconds, waited)] if waited < LEAST_WAIT * seconds else []
        if len(self._bound) == STEPS:
            seconds, waited = sorted(self._bound)[STEPS // 2]
            self._steps = None
            self._tell(seconds, waited / seconds)


def notice(seconds: float, waited: float, can_record: bool, can_compile: bool) -> str:
    """What a run that the host bounds is told, and what helps.

    Args:
        seconds: That the passes of a step take.
        waited: The share of them that the host waited.
        can_record: Whether CUDA graphs can be had.
        can_compile: Whether compiled layers can be.

    Example:
        >>> notice(0.5, 0.04, can_record=True, can_compile=False).split(". ")[1]
        'model.cuda_graphs=true launches a pass at once'
    """
    ways = ["model.cuda_graphs=true launches a pass at once"] if can_record else []
    if can_compile:
        ways.append("model.torch_compile=true has fewer kernels, and compiles for half a minute at the start")
    return (
        f"Training passes are bound by the host: those of a step take {seconds:.2f} s, and for {1 - waited:.0%} of it the host is "
        f"launching kernels. {'; '.join(ways)}. Fewer and larger passes need fewer too: raise data.batch_size or "
        "model.max_tokens_per_microbatch."
    )
