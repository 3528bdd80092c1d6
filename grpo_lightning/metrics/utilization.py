"""How busy the GPU is, over each step."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

INTERVAL = 0.25
"""Seconds between two readings; the driver averages over a sixth of a second to a second."""


class DeviceUtilization:
    """Reads, in a thread of its own while training lasts, what share of the time kernels ran on the device.

    The driver counts kernels of all processes: of the trainer, and of an engine on the same device.

    Args:
        interval: Seconds between two readings.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self.interval = interval
        self._readings: list[float] = []
        self._stop = threading.Event()

    def start(self, read: Callable[[], float] | None) -> None:
        """Begins to read.

        Args:
            read: Gives the share in [0, 1]; None where nothing can be read.
        """
        self.stop()
        if read is None:
            return
        self._stop = threading.Event()
        weakref.finalize(self, self._stop.set)  # where an error skips the end of training
        threading.Thread(target=_collect, args=(read, self.interval, self._readings, self._stop), daemon=True).start()

    def take(self) -> Tensor:
        """(n,) float64: the readings since the last call, the oldest first; empty where there are none."""
        count = len(self._readings)
        taken = torch.tensor(self._readings[:count], dtype=torch.float64)
        del self._readings[:count]
        return taken

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()


def reader_of(device: torch.device) -> Callable[[], float] | None:
    """What reads the utilization of a device; None for a CPU, and where NVML or its Python package is missing."""
    if device.type != "cuda":
        return None

    def read() -> float:
        return torch.cuda.utilization(device) / 100

    try:
        read()
    except Exception:  # no nvidia-ml-py, no NVML, a slice of a GPU: a diagnostic that is not there ends no run
        return None
    return read


def _collect(read: Callable[[], float], interval: float, readings: list[float], stop: threading.Event) -> None:
    while not stop.wait(interval):
        try:
            readings.append(read())
        except Exception:  # the driver is gone, and the run finds out by itself
            return
