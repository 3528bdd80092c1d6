"""What rewards share with training beside memory: settings of torch and Python, signals, variables. Put back after their calls."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from grpo_lightning.rewards.runtime import python_state

log = logging.getLogger(__name__)

READ_BY_TRAINING = (
    "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_", "VLLM_", "OMP_", "MKL_", "MASTER_",
    "SLURM_", "PL_", "WORLD_SIZE", "RANK", "LOCAL_", "NODE_RANK", "GROUP_RANK", "TMPDIR",
)  # fmt: skip
"""How variables begin that training, its engine or a process that it starts reads; a key of a judge stays as a reward sets it."""
HANDLED = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "USR1", "USR2", "CHLD", "ALRM")]


@dataclass(frozen=True)
class ProcessValue:
    """Something that a call can leave changed."""

    get: Callable[[], Any]
    set: Callable[[Any], object]
    is_harmless: Callable[[Any, Any], bool] = operator.eq
    """Whether training may go on with what a call left, in place of what was there before it."""
    shown: Callable[[Any], str] = str
    takes_none: bool = False
    """Elsewhere None is what Python cannot set: a handler of C code, a precision that torch does not say."""


STREAM: dict[str, Any] = {
    "is_harmless": python_state.passes_on,
    "shown": python_state.kind_of_stream,
    "takes_none": True,
}


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(READ_BY_TRAINING)}


def _set_environment(values: dict[str, str]) -> None:
    for name in _environment().keys() - values:
        del os.environ[name]
    os.environ.update(values)


def _cudnn() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic


def _set_cudnn(flags: tuple[bool, bool, bool]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to say where both of its interfaces for TF32 were used
        return None


def _set_default_device(device: torch.device) -> None:
    # Without one: with "cpu" torch would send every call through a mode of its own.
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _set_grad(is_on: bool) -> None:
    torch.set_grad_enabled(is_on)


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _set_autocast(device: str, value: tuple[bool, torch.dtype]) -> None:
    torch.set_autocast_enabled(device, value[0])
    torch.set_autocast_dtype(device, value[1])


def _start_method() -> str | None:
    # A pool of any context asks for the default one, which is thereby fixed without having changed.
    method = multiprocessing.get_start_method(allow_none=True)
    return None if method == multiprocessing.get_all_start_methods()[0] else method


def _has_alarm() -> bool:
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _end_alarm(had_one: bool) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


OF_PROCESS = {
    "torch's default dtype": ProcessValue(torch.get_default_dtype, torch.set_default_dtype),
    "torch.use_deterministic_algorithms": ProcessValue(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
    "torch's float32 matmul precision": ProcessValue(_matmul_precision, torch.set_float32_matmul_precision),
    "torch's anomaly mode": ProcessValue(torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "torch.backends.cudnn": ProcessValue(_cudnn, _set_cudnn),
    "the start method of multiprocessing": ProcessValue(
        _start_method,
        lambda method: multiprocessing.set_start_method(method, force=True),
        takes_none=True,
    ),
    "os.environ": ProcessValue(_environment, _set_environment),
    "os.umask": ProcessValue(python_state.umask, python_state.set_umask),
    "sys.stdout": ProcessValue(python_state.standard_output, python_state.set_standard_output, **STREAM),
    "sys.stderr": ProcessValue(python_state.standard_error, python_state.set_standard_error, **STREAM),
    "the filters of warnings": ProcessValue(python_state.raising_filters, python_state.set_raising_filters),
    "logging.disable": ProcessValue(lambda: logging.root.manager.disable, logging.disable),
    "gc.disable": ProcessValue(gc.isenabled, python_state.set_garbage_collection),
    "sys.setrecursionlimit": ProcessValue(sys.getrecursionlimit, sys.setrecursionlimit, python_state.is_deep_enough),
}
"""Of all threads at once: looked at when no call is under way, as calls overlap and may change one for their own time."""

OF_THREAD = {
    "torch's grad mode": ProcessValue(torch.is_grad_enabled, _set_grad),
    "torch's default device": ProcessValue(torch.get_default_device, _set_default_device),
    "torch.set_num_threads": ProcessValue(torch.get_num_threads, torch.set_num_threads),
    "torch's autocast on cpu": ProcessValue(partial(_autocast, "cpu"), partial(_set_autocast, "cpu")),
    "torch's autocast on cuda": ProcessValue(partial(_autocast, "cuda"), partial(_set_autocast, "cuda")),
}
"""Of the thread that makes the call: the main thread's are training's, another's are the next reward's."""

OF_MAIN_THREAD = {
    **{
        f"the handler of {one.name}": ProcessValue(partial(signal.getsignal, one), partial(signal.signal, one))
        for one in HANDLED
    },
    # An alarm that is left goes off in the middle of training.
    "a pending signal.alarm": ProcessValue(_has_alarm, _end_alarm),
}


@dataclass
class ProcessState:
    """Around the calls of rewards in this process: what they change of it is put back, and said once.

    Random numbers are not in it: training draws its own from seeds and counters, and a reward that draws from a global
    generator wants others at the next step.
    """

    _open: dict[int, str] = field(default_factory=dict)
    """Calls under way, with the names of their rewards."""
    _before: dict[str, Any] | None = None
    """The settings of the process when no call was under way."""
    _since: set[str] = field(default_factory=set)
    """Rewards called since then."""
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
        own = {name: setting.get() for name, setting in watched.items()}
        token = object()
        with self._lock:
            if self._before is None:
                self._before = _now(OF_PROCESS)
            self._open[id(token)] = reward
            self._since.add(reward)
        try:
            yield
        finally:
            self._put_back(watched, own, {reward})
            with self._lock:
                del self._open[id(token)]
                if not self._open:
                    self._settle()

    def settle(self) -> None:
        """At the end of a step, also where a call was given up and still runs: training goes on from here."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        if self._before is not None:
            self._put_back(OF_PROCESS, self._before, self._since)
            if not self._open:
                self._before, self._since = None, set()

    def _put_back(self, settings: dict[str, ProcessValue], before: dict[str, Any], rewards: set[str]) -> None:
        for name, setting in settings.items():
            found, wanted = setting.get(), before[name]
            if setting.is_harmless(found, wanted) or (wanted is None and not setting.takes_none):
                continue
            setting.set(wanted)
            if name not in self._said:
                self._said.add(name)
                log.warning(
                    "%s changed %s%s and left it so, which training would have gone on with. It was put back. Change it "
                    "for the time of the call only, or give the reward isolation: process.",
                    *(_subject(rewards), name, _change(wanted, found, setting.shown)),
                )


def _now(settings: dict[str, ProcessValue]) -> dict[str, Any]:
    return {name: setting.get() for name, setting in settings.items()}


def _subject(rewards: set[str]) -> str:
    names = ", ".join(f"'{name}'" for name in sorted(rewards))
    return f"Reward {names}" if len(rewards) == 1 else f"One of the rewards {names}"


def _change(before: Any, after: Any, shown: Callable[[Any], str]) -> str:
    if isinstance(before, dict):  # variables may be secrets: their names only
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return f" ({', '.join(changed)})"
    return f" from {shown(before)} to {shown(after)}" if not callable(before) and not callable(after) else ""
