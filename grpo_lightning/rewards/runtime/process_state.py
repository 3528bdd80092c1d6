"""What rewards share with training beside memory: settings of torch and Python, signals, variables. Put back after their calls."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import multiprocessing
import operator
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

log = logging.getLogger(__name__)

READ_BY_TRAINING = (
    "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_", "VLLM_", "OMP_", "MKL_", "MASTER_",
    "SLURM_", "PL_", "WORLD_SIZE", "RANK", "LOCAL_", "NODE_RANK", "GROUP_RANK", "TMPDIR",
)  # fmt: skip
"""How variables begin that training, its engine or a process that it starts reads; a key of a judge stays as a reward sets it."""
HANDLED = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "USR1", "USR2", "CHLD", "ALRM")]
DEFAULT_DEPTH = 1000
"""Python's own limit on nested calls. More is no harm, and libraries ask for it; with less, training fails."""
START_METHOD = multiprocessing.get_all_start_methods()[0]
"""Python's own. A pool of any context asks for the default one, which is thereby fixed without having changed."""
UNTOLD: Any = object()
"""In place of a value that Python cannot tell: a handler of C code, a precision that torch does not say. None may be a value."""


@dataclass(frozen=True)
class ProcessValue:
    """Something that a call can leave changed."""

    get: Callable[[], Any]
    """May give ``UNTOLD``, which is not put back."""
    set: Callable[[Any], object]
    is_harmless: Callable[[Any, Any], bool] = operator.eq
    """Whether training may go on with what a call left, in place of what was there before it."""


def umask() -> Any:
    """The file mode creation mask; ``UNTOLD`` where only setting it would tell, which other threads would notice."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return UNTOLD
    return next((int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")), UNTOLD)


def _raising_filters() -> list[Any]:
    """Filters that make errors of warnings: training's own would end the run."""
    return [each for each in warnings.filters if each[0] == "error"]


def _set_raising_filters(filters: list[Any]) -> None:
    """What hides warnings stays, libraries do it when they are imported."""
    warnings.filters[:] = [each for each in warnings.filters if each[0] != "error" or each in filters]  # type: ignore[index]


def _passes_on(found: TextIO | None, before: TextIO | None) -> bool:
    """Whether what is printed still arrives: it goes into no memory that it did not go into before.

    ``contextlib.redirect_stdout`` around calls that overlap leaves the buffer of one of them in place, and all that training
    prints from then on in it. Bars and notebooks put streams of their own in place, which pass on what they get.
    """
    return found is before or not isinstance(found, io.StringIO | None)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(READ_BY_TRAINING)}


def _set_environment(values: dict[str, str]) -> None:
    for name in _environment().keys() - values:
        del os.environ[name]
    os.environ.update(values)


def _attributes(owner: Any, *names: str, is_harmless: Callable[[Any, Any], bool] = operator.eq) -> ProcessValue:
    def put(values: Any) -> None:
        for name, value in zip(names, values if len(names) > 1 else [values], strict=True):
            setattr(owner, name, value)

    return ProcessValue(partial(operator.attrgetter(*names), owner), put, is_harmless)


def _matmul_precision() -> Any:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to say where both of its interfaces for TF32 were used
        return UNTOLD


def _handler(one: signal.Signals) -> Any:
    handler = signal.getsignal(one)
    return UNTOLD if handler is None else handler


def _autocast(device: str) -> ProcessValue:
    def put(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return ProcessValue(lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)), put)


OF_PROCESS = {
    "torch's default dtype": ProcessValue(torch.get_default_dtype, torch.set_default_dtype),
    "torch.use_deterministic_algorithms": ProcessValue(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    "torch's float32 matmul precision": ProcessValue(_matmul_precision, torch.set_float32_matmul_precision),
    "torch's anomaly mode": ProcessValue(torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "torch.backends.cudnn": _attributes(torch.backends.cudnn, "enabled", "benchmark", "deterministic"),
    "the start method of multiprocessing": ProcessValue(
        lambda: multiprocessing.get_start_method(allow_none=True) or START_METHOD,
        lambda method: multiprocessing.set_start_method(None if method == START_METHOD else method, force=True),
    ),
    "os.environ": ProcessValue(_environment, _set_environment),
    "os.umask": ProcessValue(
        umask,
        os.umask,
        lambda found, before: found in (before, UNTOLD),  # no file can be opened: a reward left too many
    ),
    "sys.stdout": _attributes(sys, "stdout", is_harmless=_passes_on),
    "sys.stderr": _attributes(sys, "stderr", is_harmless=_passes_on),
    "the filters of warnings": ProcessValue(_raising_filters, _set_raising_filters),
    # The attribute alone would not do: each logger remembers what it answered while it was disabled.
    "logging.disable": ProcessValue(lambda: logging.root.manager.disable, logging.disable),
    "gc.disable": ProcessValue(gc.isenabled, lambda is_on: gc.enable() if is_on else gc.disable()),
    "sys.setrecursionlimit": ProcessValue(
        sys.getrecursionlimit, sys.setrecursionlimit, lambda found, before: found >= min(before, DEFAULT_DEPTH)
    ),
}
"""Of all threads at once: looked at when no call is under way, as calls overlap and may change one for their own time."""

OF_THREAD = {
    "torch's grad mode": ProcessValue(torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's default device": ProcessValue(
        torch.get_default_device,
        # With "cpu" in place of none torch would send every call through a mode of its own.
        lambda device: torch.set_default_device(None if device == torch.device("cpu") else device),
    ),
    "torch.set_num_threads": ProcessValue(torch.get_num_threads, torch.set_num_threads),
    "torch's autocast on cpu": _autocast("cpu"),
    "torch's autocast on cuda": _autocast("cuda"),
}
"""Of the thread that makes the call: the main thread's are training's, another's are the next reward's."""

OF_MAIN_THREAD = {
    **{
        f"the handler of {one.name}": ProcessValue(partial(_handler, one), partial(signal.signal, one))
        for one in HANDLED
    },
    # An alarm that is left goes off in the middle of training.
    "a pending signal.alarm": ProcessValue(
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, lambda had_one: signal.setitimer(signal.ITIMER_REAL, 0)
    ),
}


@dataclass
class ProcessState:
    """Around the calls of rewards in this process: what they change of it is put back, and said once.

    Random numbers are not in it: training draws its own from seeds and counters, and a reward that draws from a global
    generator wants others at the next step.
    """

    _open: Counter[str] = field(default_factory=Counter)
    """Calls under way, by reward; those that were given up go on."""
    _before: dict[str, Any] = field(default_factory=dict)
    """The settings of the process before the calls that overlap, or at the end of a step that left some behind."""
    _since: set[str] = field(default_factory=set)
    """Rewards that were under way since then."""
    _is_settled: bool = True
    """Whether all has been put back, so that settings which differ from then on are training's."""
    _said: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def call(self, reward: str, owns_thread: bool = True) -> Iterator[None]:
        """Around a call, in its thread.

        Args:
            reward: Its name.
            owns_thread: Whether no other call works in the thread meanwhile, as coroutines do in theirs.
        """
        watched = dict(OF_THREAD) if owns_thread else {}
        if owns_thread and threading.current_thread() is threading.main_thread():
            watched |= OF_MAIN_THREAD
        own = _now(watched)
        with self._lock:
            if self._is_settled:
                self._before, self._since, self._is_settled = _now(OF_PROCESS), set(self._open), False
            self._open[reward] += 1
            self._since.add(reward)
        try:
            yield
        finally:
            self._put_back(watched, own, {reward})
            with self._lock:
                self._open -= Counter([reward])  # which leaves out what is 0
                if not self._open:
                    self._put_back(OF_PROCESS, self._before, self._since)
                    self._is_settled = True

    def settle(self) -> None:
        """At the end of a step, also where a call was given up and still runs: training goes on from here."""
        with self._lock:
            if not self._is_settled:
                self._put_back(OF_PROCESS, self._before, self._since)
            self._before, self._is_settled = _now(OF_PROCESS), True

    def _put_back(self, settings: dict[str, ProcessValue], before: dict[str, Any], rewards: set[str]) -> None:
        for name, setting in settings.items():
            found, wanted = setting.get(), before[name]
            if wanted is UNTOLD or setting.is_harmless(found, wanted):
                continue
            setting.set(wanted)
            if name not in self._said:
                self._said.add(name)
                names = ", ".join(f"'{reward}'" for reward in sorted(rewards))
                log.warning(
                    "%s %s changed %s%s and left it so, which training would have gone on with. It was put back. Change it "
                    "for the time of the call only, or give the reward isolation: process.",
                    *("Reward" if len(rewards) == 1 else "One of the rewards", names, name, _change(wanted, found)),
                )


def _now(settings: dict[str, ProcessValue]) -> dict[str, Any]:
    return {name: setting.get() for name, setting in settings.items()}


def _change(before: Any, after: Any) -> str:
    if isinstance(before, dict):  # variables may be secrets: their names only
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return f" ({', '.join(changed)})"
    said = (bool, int, str, tuple, torch.dtype, torch.device)  # a handler or a stream says nothing by its text
    return f" from {before} to {after}" if isinstance(before, said) and isinstance(after, said) else ""
