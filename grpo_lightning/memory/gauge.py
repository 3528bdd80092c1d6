"""What a device's memory holds: how much is free, how much a block of code needs, how much an optimizer will keep."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grpo_lightning.distributed.sharding import local
from grpo_lightning.types import OptimizerFactory

SAMPLE_SHAPE = (256, 256)
"""Of the weight that an optimizer is tried on: large enough for those that keep small ones in another precision."""


class MemoryGauge(ABC):
    """Measures one device. All numbers are bytes."""

    total: int
    """Of the device."""

    @abstractmethod
    def free(self) -> int:
        """What new tensors can take, once everything that nobody holds is given back."""

    @abstractmethod
    def hold(self, size: int) -> object:
        """Takes memory until the result is forgotten.

        Raises:
            torch.OutOfMemoryError: If there is not as much.
        """

    @abstractmethod
    def peak(self) -> int:
        """The most that was in use since the last measurement."""

    @abstractmethod
    def measuring(self) -> Any:
        """A context manager whose value, a function, gives the most that was in use since, less what was before."""


class CudaGauge(MemoryGauge):
    """Torch's allocator on a CUDA device, and what the driver has besides."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total = torch.cuda.mem_get_info(device)[1]

    def free(self) -> int:
        """See ``MemoryGauge.free``: of the driver, and of the allocator's segments that are not given back."""
        gc.collect()  # a graph that an error left behind is a cycle
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + unused

    def hold(self, size: int) -> Tensor:
        """See ``MemoryGauge.hold``."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def peak(self) -> int:
        """See ``MemoryGauge.peak``: of torch's allocator in this process, an engine's part included."""
        return torch.cuda.max_memory_allocated(self.device)

    @contextmanager
    def measuring(self) -> Iterator[Callable[[], int]]:
        """See ``MemoryGauge.measuring``. The peak that torch reports starts anew before and after the block."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield lambda: torch.cuda.max_memory_allocated(self.device) - before
        finally:
            torch.cuda.reset_peak_memory_stats(self.device)


def gauge_of(device: torch.device) -> MemoryGauge | None:
    """The gauge of a device; None where memory cannot be measured, as on a CPU."""
    return CudaGauge(device) if device.type == "cuda" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory, inside torch or inside a library that it calls."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


class OptimizerBytes(NamedTuple):
    """Memory of an optimizer beside weights and gradients."""

    kept: float
    """From its first step on."""
    passing: float
    """Besides, while it steps."""


def optimizer_bytes(optimizer: torch.optim.Optimizer, factory: OptimizerFactory, gauge: MemoryGauge) -> tuple[int, int]:
    """What an optimizer will keep and does not have yet, and what it takes besides while it steps.

    Args:
        optimizer: That of the run.
        factory: Makes another one of its kind, which steps on a small weight of each dtype.
        gauge: Of the device that holds the weights.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    samples = {dtype: _sample_bytes(factory, dtype, weights[0].device, gauge) for dtype in {w.dtype for w in weights}}
    sizes = [(local(weight).numel(), samples[weight.dtype]) for weight in weights]
    has_states = any(optimizer.state.values())
    kept = 0.0 if has_states else sum(count * sample.kept for count, sample in sizes)
    return round(kept), round(sum(count * sample.passing for count, sample in sizes))


def _sample_bytes(
    factory: OptimizerFactory, dtype: torch.dtype, device: torch.device, gauge: MemoryGauge
) -> OptimizerBytes:
    """The same for each weight of a dtype."""
    sample = nn.Parameter(torch.zeros(SAMPLE_SHAPE, dtype=dtype, device=device))
    sample.grad = torch.zeros_like(sample)
    optimizer = factory([sample])
    optimizer.step()
    states = [value for value in optimizer.state[sample].values() if isinstance(value, Tensor) and value.numel() > 1]
    with gauge.measuring() as peak:
        optimizer.step()
        passing = peak()
    kept = sum(state.numel() * state.element_size() for state in states)
    return OptimizerBytes(kept / sample.numel(), passing / sample.numel())
