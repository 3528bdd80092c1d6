"""Real ranks for tests: processes that Lightning's strategies connect through gloo, as on any launcher's nodes."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fork_server import CONTEXT
from ports import free_port

SECONDS = 150
"""A rank that needs longer hangs: it prints where, and the test fails."""


def run_ranks(
    count: int, function: Callable[..., Any], *args: Any, seconds: int = SECONDS, context: Any = CONTEXT
) -> list[Any]:
    """What ``function(*args)`` returns on each of ``count`` ranks, in rank order.

    Args:
        count: How many.
        function, args: What they run.
        seconds: After which a rank hangs.
        context: Of ``multiprocessing``, which starts them.

    Raises:
        AssertionError: With the traceback of the ranks that failed.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"rank{rank}.pt") for rank in range(count)]
        ranks = [
            context.Process(target=_rank_main, args=(rank, count, port, path, seconds, function, args))
            for rank, path in enumerate(paths)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(seconds + 10)
            rank.kill()
            rank.join()
        results = [torch.load(path, weights_only=False) if path.exists() else "it hung or was killed" for path in paths]
    failures = [f"rank {rank}: {found}" for rank, found in enumerate(results) if isinstance(found, str)]
    assert not failures, "\n".join(failures)
    return [found[0] for found in results]


def launcher_variables(rank: int, count: int, port: int) -> dict[str, str]:
    """What a launcher of one node tells a rank."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    return address | {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}


def _rank_main(
    rank: int, count: int, port: int, path: Path, seconds: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True)
    torch.set_num_threads(1)
    if count > 1:  # as a launcher does; Lightning then starts no processes of its own
        os.environ.update(launcher_variables(rank, count, port))
    try:
        result: Any = [function(*args)]
    except BaseException:
        result = traceback.format_exc()
    torch.save(result, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    os._exit(0)  # no farewell to ranks that may have failed
