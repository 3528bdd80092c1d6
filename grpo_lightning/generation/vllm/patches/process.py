"""What the start and the end of an engine would change of the process that it is in, and of its classes; ``patch_list.py`` lists it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from grpo_lightning.generation.vllm.compat import UNUSED_SAMPLER

RESTORED_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LD_PRELOAD", *UNUSED_SAMPLER)
"""Set for the engine or by it; children of this process and Lightning would read them."""
UNDECORATED: dict[Any, tuple[Any, Any]] = {}
"""Classes of transformers that an engine of this process computes with, with their bases and ``__call__`` of before."""

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux lists named shared memory."""


def know_model(directory: str) -> None:
    """Tells vLLM what the class of a model can do: left alone it starts a second interpreter to ask, for up to 20 seconds.

    Args:
        directory: Of the model, in Hugging Face format.
    """
    from vllm import ModelRegistry

    config = json.loads(Path(directory, "config.json").read_text(encoding="utf-8"))
    for architecture in config.get("architectures") or ():
        if architecture in ModelRegistry.models:
            ModelRegistry.register_model(architecture, ModelRegistry.models[architecture].load_model_cls())


@contextmanager
def keeping_buffers() -> Iterator[None]:
    """Inside, an engine that starts with random weights leaves alone what its model computed: buffers, which no checkpoint has.

    The Qwen-VL families hold the mean and the deviation of pixels in them.
    """
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    loader_class: Any = DummyModelLoader
    load = loader_class.load_weights

    def load_weights(self: Any, model: nn.Module, *args: Any, **options: Any) -> None:
        kept = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
        load(self, model, *args, **options)
        for buffer, values in kept:
            buffer.copy_(values)

    loader_class.load_weights = load_weights
    try:
        yield
    finally:
        loader_class.load_weights = load


@contextmanager
def keeping_classes() -> Iterator[None]:
    """Inside, an engine may be built of the class that the policy is of, which stays as it is for the policy.

    For models that vLLM has no class of its own for (SmolLM3, Olmo 3, Seed-OSS) it takes that of transformers, and has it
    compile itself when it is called: also the policy, which knows nothing of that. Now only what was built inside does.
    """
    from transformers import PreTrainedModel
    from vllm.compilation import decorators

    module: Any = decorators
    decorate, inits = module._support_torch_compile, list[tuple[Any, Any]]()

    def decorate_for_the_engine(cls: Any, *args: Any, **options: Any) -> Any:
        if not issubclass(cls, PreTrainedModel):
            return decorate(cls, *args, **options)
        bases, call = UNDECORATED.setdefault(cls, (cls.__bases__, cls.__call__))
        cls.__bases__ = bases  # as before the last engine: what is decorated is not decorated again
        inits.append((cls, cls.__init__))
        decorated = decorate(cls, *args, **options)
        call_compiled = cls.__call__

        def call_own(self: Any, *args: Any, **options: Any) -> Any:
            return (call_compiled if "do_not_compile" in vars(self) else call)(self, *args, **options)

        cls.__call__ = call_own
        return decorated

    module._support_torch_compile = decorate_for_the_engine
    try:
        yield
    finally:
        module._support_torch_compile = decorate
        for cls, init in inits:
            cls.__init__ = init


@contextmanager
def keeping_environment() -> Iterator[None]:
    """Puts variables back afterwards that concern the ranks and the children of this process."""
    before = {name: os.environ.get(name) for name in RESTORED_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Inside, torch's number of threads may be changed, and how it is set; both are as before afterwards."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)


@contextmanager
def naming_shared_memory(identity: str) -> Iterator[None]:
    """Inside, an engine of ranks on a CPU starts with shared memory under a name of its own, which is gone afterwards.

    vLLM takes the name from the address at which ranks meet, and has none here: all such engines of a machine have the same,
    and one that was killed leaves it behind. Once every rank has the memory it needs no name.

    Args:
        identity: The same on the engine's ranks, and no other engine's.
    """
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    executor_class: Any = ExecutorWithExternalLauncher
    place = executor_class._distributed_args

    def named_place(self: Any) -> tuple[str, int, int]:
        address, rank, local_rank = place(self)  # nobody goes there: the ranks have met
        return f"{address}:{identity}", rank, local_rank  # what is behind the last colon begins the name

    executor_class._distributed_args = named_place
    try:
        yield
    finally:
        executor_class._distributed_args = place
        for segment in SHARED_MEMORY.glob(f"{identity}-*"):
            segment.unlink(missing_ok=True)


@contextmanager
def keeping_process_group() -> Iterator[None]:
    """Inside, the default process group is not destroyed; other groups are."""
    real = dist.destroy_process_group

    def destroy(group: Any = None) -> None:
        if group is not None and group is not dist.group.WORLD:
            real(group)

    dist.destroy_process_group = destroy
    try:
        yield
    finally:
        dist.destroy_process_group = real
