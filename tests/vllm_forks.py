"""Two training ranks with engines of vLLM, forks of the process that has imported it: a second instead of half a minute."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm_cases import eager_torch
from vllm_program_forks import VLLMFork

from tests.distributed.ranks import SECONDS, run_ranks


def run_engine_ranks(function: Callable[..., Any], runs: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """What ``function(*arguments)`` returns on both ranks, for the arguments of each run, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        order, found, log = (Path(folder, name) for name in ("order", "found", "log"))
        order.write_bytes(pickle.dumps((function, runs)))
        with log.open("wb") as output:
            fork = VLLMFork([sys.executable, "-m", "vllm_forks", str(order), str(found)], stdout=output)
        status = fork.wait(SECONDS * (len(runs) + 1))
        assert status == 0, log.read_text()[-5000:]
        return pickle.loads(found.read_bytes())


def main(order: str, found: str) -> None:
    """Of the process whose forks the ranks are."""
    function, runs = pickle.loads(Path(order).read_bytes())
    fork = multiprocessing.get_context("fork")
    with eager_torch():
        results = [run_ranks(2, function, *each, context=fork) for each in runs]
    Path(found).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
