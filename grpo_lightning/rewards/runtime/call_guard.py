"""What surrounds every call of a reward in this process: the watchdog, what is put back, the device that ``"cuda"`` means."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from grpo_lightning.rewards.runtime.lock_watch import LockWatch
from grpo_lightning.rewards.runtime.process_state import ProcessState


class CallGuard:
    """Entered in the thread that makes the call."""

    def __init__(self) -> None:
        self.watch = LockWatch()
        self.state = ProcessState()
        self.device: torch.device | None = None
        """The rank's; None for whatever the thread has."""

    @contextlib.contextmanager
    def call(self, reward: str, rows: int, time_limit: float, owns_thread: bool = True) -> Iterator[None]:
        """Around a call of a reward with so many completions; ``owns_thread`` is False for coroutines.

        Every thread has a current CUDA device of its own, which starts as the first: without this, a reward that says
        ``"cuda"`` works on GPU 0 on every rank.
        """
        self._set_device()
        try:
            with self.watch.call(reward, rows, time_limit), self.state.call(reward, owns_thread):
                yield
        finally:
            self._set_device()  # the main thread goes on with training

    def _set_device(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)
