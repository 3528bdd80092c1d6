"""The other ranks of this node, started with the command: they import while the first rank does.

Lightning starts them in ``Trainer.fit``, by when the first rank has imported everything; it then waits until they have, too.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

PROGRAM = "grpo_lightning.distributed.rank_main"
READ_AT_IMPORT = (
    "CUDA_VISIBLE_DEVICES", "GOMP_", "HF_", "HUGGINGFACE_", "LD_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_LOGS", "TRANSFORMERS_",
)  # fmt: skip
"""How variables begin that Python, torch and Hugging Face's libraries look at once, as they are loaded."""


class EarlyRank:
    """A process that imports what its command needs, and then waits to be told to run it.

    It ends without a word where it is told nothing: when this process ends, however it does.

    Args:
        local_rank: What it will be. It is told at once, since libraries ask for it as they are imported.
        module: What it imports.
        arguments: Of ``python -m grpo_lightning``, which it is to run.
    """

    def __init__(self, local_rank: int, module: str, arguments: Sequence[str]) -> None:
        self._imported_with = _read_at_import(os.environ)
        reading, writing = os.pipe()
        self._pipe = os.fdopen(writing, "w", encoding="ascii")
        # Ctrl-C reaches every process of a terminal: this one is deaf to it until it has said what it does then.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(reading), module, *arguments],
                env={**os.environ, "LOCAL_RANK": str(local_rank)},
                pass_fds=(reading,),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(reading)

    def has_imported_with(self, environment: Mapping[str, str]) -> bool:
        """Whether its libraries would not have been loaded otherwise with this environment."""
        return self._imported_with == _read_at_import(environment)

    def run(self, environment: Mapping[str, str]) -> None:
        """Lets it be ``python -m grpo_lightning ARGUMENTS`` with this environment, from here on.

        Raises:
            BrokenPipeError: If it has ended.
        """
        with self._pipe:
            json.dump({**environment}, self._pipe)
            self._pipe.write("\n")

    def dismiss(self) -> None:
        """Ends it, and waits for that."""
        self._pipe.close()
        self.process.kill()  # whatever this process has forked may hold the pipe open
        self.process.wait()


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


_waiting: dict[int, EarlyRank] = {}


def start_early(count: int, module: str, arguments: Sequence[str]) -> None:
    """Starts the ranks from 1 to below ``count``; where nobody asks for them they end with this process."""
    if count > 1:
        atexit.register(dismiss_early)
        _waiting.update({rank: EarlyRank(rank, module, arguments) for rank in range(1, count)})


def are_waiting() -> bool:
    """Whether a rank was started that has not been told what to run."""
    return bool(_waiting)


def run_rank(local_rank: int, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The process that was waiting to be this rank, or a new one, which is now ``python -m grpo_lightning ARGUMENTS``."""
    waiting = _waiting.pop(local_rank, None)
    if waiting is not None and waiting.has_imported_with(environment):
        with suppress(BrokenPipeError):  # ended by someone
            waiting.run(environment)
            return waiting.process
    elif waiting is not None:
        waiting.dismiss()
    new = EarlyRank(local_rank, "grpo_lightning", arguments)
    new.run(environment)
    return new.process


def dismiss_early() -> None:
    """Ends those that nobody has asked for."""
    while _waiting:
        _waiting.popitem()[1].dismiss()
