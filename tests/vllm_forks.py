"""Two training ranks with engines of vLLM, forked from one process that has imported it: a second instead of half a minute."""

from __future__ import annotations

import faulthandler
import multiprocessing
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from frozen_imports import freeze_imports
from vllm_cases import eager_torch

from tests.distributed.ranks import SECONDS, run_ranks

IMPORTED_BY_AN_ENGINE = ("vllm.entrypoints.llm", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker")


def run_engine_ranks(function: Callable[..., Any], runs: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """What ``function(*arguments)`` returns on both ranks, for the arguments of each run, one after the other."""
    seconds = SECONDS * (len(runs) + 1)
    (found,) = run_ranks(1, _import_and_fork, function, runs, seconds=seconds)
    return found


def _import_and_fork(function: Callable[..., Any], runs: Sequence[Sequence[Any]]) -> list[list[Any]]:
    with eager_torch():
        for name in IMPORTED_BY_AN_ENGINE:
            import_module(name)
        freeze_imports()
        faulthandler.cancel_dump_traceback_later()  # its thread's lock would be held for ever in a fork
        fork = multiprocessing.get_context("fork")
        return [run_ranks(2, function, *arguments, context=fork) for arguments in runs]
