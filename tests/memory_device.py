"""A small device for tests on a CPU: what autograd saves for backward passes is counted, and there is only so much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_lightning.memory.gauge import MemoryGauge


class Held:
    """Bytes in use while this object lives; with the tensor that they are of, if any."""

    def __init__(self, gauge: SavedTensors, size: int, tensor: Tensor | None = None) -> None:
        self.gauge, self.size, self.tensor = gauge, size, tensor
        gauge.used += size
        gauge.most = max(gauge.most, gauge.used)

    def __del__(self) -> None:
        self.gauge.used -= self.size


class Allocator(TorchDispatchMode):
    """Lets an operation fail where memory has run out, as a kernel's allocation does."""

    def __init__(self, gauge: SavedTensors) -> None:
        super().__init__()
        self.gauge = gauge

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.gauge.check()
        return function(*args, **(kwargs or {}))


class SavedTensors(MemoryGauge):
    """Counts the tensors that passes save, inside ``measuring``, and refuses more than ``total`` bytes."""

    def __init__(self, total: int) -> None:
        self.total, self.used, self.most, self.passes = total, 0, 0, 0

    def check(self) -> None:
        if self.used > self.total:
            raise torch.OutOfMemoryError(f"{self.used} bytes are more than {self.total}")

    def free(self) -> int:
        return self.total - self.used

    def peak(self) -> int:
        return self.most

    def hold(self, size: int) -> Held:
        held = Held(self, size)
        self.check()
        return held

    @contextmanager
    def measuring(self) -> Iterator[Callable[[], int]]:
        before, self.most = self.used, self.used
        self.passes += 1

        def save(tensor: Tensor) -> Held:
            # Detached: an output that holds its own graph would never be let go of.
            return Held(self, tensor.numel() * tensor.element_size(), tensor.detach())

        with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor), Allocator(self):
            yield lambda: self.most - before
        self.most = self.used


def on_device(gauge: MemoryGauge) -> Callable[[Any], None]:
    """Makes a module measure with ``gauge``; for ``runs.fit(on_module=...)``."""

    def equip(module: Any) -> None:
        module.memory_gauge = lambda: gauge

    return equip
