"""An engine inside the training process: made and ended without a trace in that process."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from grpo_lightning.distributed.gather import is_distributed, own_rank
from grpo_lightning.generation.random_state import preserved_random_state
from grpo_lightning.generation.vllm.compat import UNUSED_SAMPLER, import_vllm
from grpo_lightning.generation.vllm.patches.models import compute_as_transformers
from grpo_lightning.generation.vllm.patches.process import (
    keeping_buffers,
    keeping_classes,
    keeping_environment,
    keeping_process_group,
    keeping_threads,
    know_model,
    naming_shared_memory,
)


def make_engine(device: torch.device, **arguments: Any) -> Any:
    """A ``vllm.LLM``, one worker in this process.

    With several ranks every rank makes one at the same time, and each engine is one rank of its tensor-parallel group.

    Args:
        device: The policy's.
        arguments: Of ``vllm.LLM``.
    """
    vllm = import_vllm()
    named: AbstractContextManager[None] = nullcontext()
    if is_distributed():
        arguments["distributed_executor_backend"] = "external_launcher"
        if device.type == "cpu":
            named = naming_shared_memory(_identity(arguments.get("tensor_parallel_size", 1)))
    elif device.type == "cuda" and device.index not in (None, 0):
        raise ValueError(
            f"the policy is on {device}, and a vLLM engine of a single process is always on the first visible device. "
            f"Start with CUDA_VISIBLE_DEVICES={device.index} and trainer.devices=1."
        )
    with (
        keeping_environment(),
        preserved_random_state(device),
        engine_mode(device),
        keeping_threads(),
        keeping_buffers(),
        keeping_classes(),
        named,
    ):
        for name, value in UNUSED_SAMPLER.items():
            os.environ.setdefault(name, value)
        os.environ.update(_launcher_variables(device))
        know_model(arguments["model"])
        compute_as_transformers()
        return vllm.LLM(**arguments)


def _identity(tensor_parallel_size: int) -> str:
    """A name that the ranks of this rank's engine agree on, and nothing else on the machine has; all ranks have to ask."""
    of_run = [secrets.token_hex(3)]  # short: macOS allows 31 characters with what vLLM adds
    dist.broadcast_object_list(of_run, src=0)
    return f"{of_run[0]}{own_rank()[0] // tensor_parallel_size}"


def _launcher_variables(device: torch.device) -> dict[str, str]:
    """What vLLM reads of its place among the ranks; Lightning sets only some of it."""
    rank, ranks = own_rank()
    if ranks == 1:
        return {}
    local_rank = str(device.index) if device.type == "cuda" else os.environ.get("LOCAL_RANK", "0")
    return {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": local_rank}


@contextmanager
def engine_mode(device: torch.device) -> Iterator[None]:
    """Around every call into the engine: no autocast, which would change its arithmetic, and no gradient."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Spares Python's garbage collector everything that exists now: thousands of new objects per token set it off."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def end_engine(llm: Any, keep_process_group: bool) -> None:
    """Shuts the engine down and frees its memory.

    Args:
        llm: A ``vllm.LLM``.
        keep_process_group: Leave the default group alone.
    """
    with keeping_process_group() if keep_process_group else nullcontext():
        llm.llm_engine.engine_core.shutdown()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
