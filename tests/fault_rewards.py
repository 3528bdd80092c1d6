"""A second reward of weight 0 that misbehaves once, in ways that rewards do; the run's own reward is another one.

``FAULT`` in the environment names what it does in its third call. A run that survives it ends with the weights of a run
without it, bit for bit. Where the contract is broken the run has to stop, and to go on once the reward is gone.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch

from grpo_lightning.rewards.runtime import lock_watch

Values = Any
lock_watch.GRACE = 0.5  # with the time limit of the call: seconds until a run that hangs is ended


def _raise(error: BaseException) -> None:
    raise error


def _recurses(depth: int = 0) -> int:
    return _recurses(depth + 1) + 1


def _global_state(completions: Sequence[str], columns: dict[str, Any]) -> None:
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    os.chdir("/")


def _spoils_its_arguments(completions: list[str], columns: dict[str, Any]) -> None:
    for values in (completions, *(value for value in columns.values() if isinstance(value, list))):
        values.clear()


def _leaves_work_behind(completions: Sequence[str], columns: dict[str, Any]) -> None:
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(20)"])
    threading.Thread(target=time.sleep, args=[20], daemon=True).start()


def _removes_what_the_run_wrote(completions: Sequence[str], columns: dict[str, Any]) -> None:
    for name in ("completions", "logs"):
        shutil.rmtree(os.path.join(os.environ["RUN_FOLDER"], name), ignore_errors=True)


Fault = Callable[[list[str], dict[str, Any]], Values]
SURVIVED: dict[str, Fault] = {
    "raises": lambda c, k: _raise(ValueError("bad row")),
    "raises StopIteration": lambda c, k: _raise(StopIteration()),
    "raises SystemExit": lambda c, k: sys.exit(3),
    "raises KeyboardInterrupt": lambda c, k: _raise(KeyboardInterrupt()),
    "raises MemoryError": lambda c, k: _raise(MemoryError()),
    "raises with a lone surrogate": lambda c, k: _raise(ValueError("\ud800")),
    "recurses": lambda c, k: _recurses(),
    "waits too long": lambda c, k: time.sleep(3),
    "returns None": lambda c, k: None,
    "returns NaN": lambda c, k: [float("nan")] * len(c),
    "returns a tensor": lambda c, k: torch.ones(len(c), 1, dtype=torch.bfloat16),
    "returns huge numbers": lambda c, k: [1e38] * len(c),
    "logs a lone surrogate": lambda c, k: k["log_extra"]("seen", ["\ud800"] * len(c)),
    "changes global state": _global_state,
    "spoils its arguments": _spoils_its_arguments,
    "leaves work behind": _leaves_work_behind,
    "removes what the run wrote": _removes_what_the_run_wrote,
}
"""In a thread: the run goes on as if nothing had happened."""
IN_A_PROCESS: dict[str, Fault] = {
    "its process exits": lambda c, k: os._exit(1),
    "its process is killed": lambda c, k: os.kill(os.getpid(), 9),
    "its process backtracks": lambda c, k: re.fullmatch(r"(a+)+b", "a" * 60),
    "its process runs out of memory": lambda c, k: [bytearray(2**33) for _ in range(8)],
}
"""With ``isolation: process``: the same."""
STOPPED: dict[str, Fault] = {
    "returns too few": lambda c, k: [0.0],
    "returns text": lambda c, k: ["good"] * len(c),
    "returns infinity": lambda c, k: [float("inf")] * len(c),
    "never lets go of the lock": lambda c, k: re.fullmatch(r"(a+)+b", "a" * 60),
}
"""The run stops, and goes on without the reward as if nothing had happened."""
FAULTS = SURVIVED | IN_A_PROCESS | STOPPED


def misbehaves(completions: list[str], trainer_state: Any, log_extra: Any, **columns: Any) -> Values:
    """Zeros, but for the fault."""
    count = len(completions)
    if trainer_state.global_step == 2:
        found = FAULTS[os.environ["FAULT"]](completions, {**columns, "log_extra": log_extra})
        if isinstance(found, list | torch.Tensor) or os.environ["FAULT"] == "returns None":
            return found
    return [0.0] * count
