"""Everything in which this package changes vLLM, and torch for its sake; each change is listed in ``patch_list.py``.

A class is changed in its process for good, or inside a ``with`` block; an engine of this process while it lives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

COPIED = {"GptOssForCausalLM": (".experts.", ".sinks")}
"""By class of vLLM: parts of the names of weights that its ``load_weights`` copies into its tensors without their loaders."""
EXPERT_PREFIX = "lora_base_layer_prefix"
"""Of the experts of a mixture: what a LoRA layer around them adds to the names that they load under."""


def stand_before_scheduler(scheduler: Any, update_from_output: Any, allocate_slots: Any) -> None:
    """From here on, this scheduler's two methods are others.

    Args:
        scheduler: Of an engine in this process.
        update_from_output: In place of ``Scheduler.update_from_output``.
        allocate_slots: In place of ``KVCacheManager.allocate_slots``.
    """
    scheduler.update_from_output = update_from_output
    scheduler.kv_cache_manager.allocate_slots = allocate_slots


@contextmanager
def reading_adapters_from(matrices: dict[str, Tensor]) -> Iterator[None]:
    """Inside, engines of this process take these matrices for the content of an adapter's file.

    vLLM reads a file tensor by tensor and copies each into page-locked memory; these stay on the device that they are on.
    What vLLM checks of a file is not checked: give it one of the same names first.
    """
    from vllm.lora.lora_model import LoRAModel

    model_class: Any = LoRAModel
    read = model_class.__dict__["from_local_checkpoint"]
    passed_on = ("lora_model_id", "dtype", "model_vocab_size", "weights_mapper", "skip_prefixes")

    def take(cls: Any, directory: str, expected: set[str], peft_helper: Any, **options: Any) -> Any:
        device = next(iter(matrices.values())).device
        further = {name: value for name, value in options.items() if name in passed_on}
        return cls.from_lora_tensors(tensors=matrices, peft_helper=peft_helper, device=device, **further)

    model_class.from_local_checkpoint = classmethod(take)
    try:
        yield
    finally:
        model_class.from_local_checkpoint = read


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
def past_lora_layers(model: nn.Module) -> Iterator[None]:
    """Inside, the model is as it was when it was loaded: without the LoRA layers around its own.

    A checkpoint's names lead to the model's own layers. vLLM 0.25 does not follow them through a LoRA layer; 0.32 does,
    but in models that look their parameters up by whole names, and in mixtures.

    Args:
        model: The engine's; one without LoRA layers is left alone.
    """
    if getattr(model, "lora_manager", None) is None:
        yield
        return
    from vllm.lora.layers import BaseLayerWithLoRA

    around = [
        (parent, name, layer)
        for parent in list(model.modules())
        for name, layer in parent._modules.items()
        if isinstance(layer, BaseLayerWithLoRA)
    ]
    for parent, name, layer in around:
        setattr(parent, name, layer.base_layer)
    # Experts with a LoRA layer around them want "base_layer." in the names of a checkpoint.
    prefixes = [(layer, getattr(layer, EXPERT_PREFIX)) for layer in model.modules() if hasattr(layer, EXPERT_PREFIX)]
    for experts, _ in prefixes:
        setattr(experts, EXPERT_PREFIX, "")
    try:
        yield
    finally:
        for experts, prefix in prefixes:
            setattr(experts, EXPERT_PREFIX, prefix)
        for parent, name, layer in around:
            setattr(parent, name, layer)


def load_past_lora_layers() -> None:
    """From here on, every model of this process that gets LoRA layers takes the weights of its base nevertheless.

    For servers, which load in calls of their own. Does nothing where vLLM's own LoRA layers hand weights on.
    """
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.lora.model_manager import LoRAModelManager

    if hasattr(BaseLayerWithLoRA, "load_weights"):
        return
    manager_class: Any = LoRAModelManager
    put_lora_layers = manager_class.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        put_lora_layers(self, *args, **kwargs)
        model, load = self.model, self.model.load_weights

        def load_weights(weights: Iterable[tuple[str, Tensor]]) -> None:
            with past_lora_layers(model):
                load(weights)

        model.load_weights = load_weights

    manager_class.__init__ = init


def extend_server_workers() -> None:
    """What this process's workers need to take the policy's weights in every version.

    For servers, which load in calls of their own: ``reload`` and ``load_directly`` do the same for the colocated engine.
    """
    load_past_lora_layers()
    load_own_layers_only()
    repack_tied_heads_after_reloads()


def load_own_layers_only() -> None:
    """From here on, every model of this process is given a tied head only if it has one, in files and over NCCL."""
    from vllm.model_executor.models.utils import AutoWeightsLoader

    loader_class: Any = AutoWeightsLoader
    load = loader_class.load_weights

    def load_weights(self: Any, weights: Iterable[tuple[str, Tensor]], **options: Any) -> set[str]:
        return load(self, of_own_layers(self.module, weights), **options)

    loader_class.load_weights = load_weights


def repack_tied_heads_after_reloads() -> None:
    """From here on, every worker of this process computes with the tied head that it was sent."""
    from vllm.v1.worker.gpu_worker import Worker

    worker_class: Any = Worker  # the CPU's inherits it
    reload_weights = worker_class.reload_weights

    def reload_and_repack(self: Any, *args: Any, **options: Any) -> None:
        with copying_after_reload(self.get_model()):
            reload_weights(self, *args, **options)
        repack_tied_heads(self.get_model())

    worker_class.reload_weights = reload_and_repack


@contextmanager
def copying_after_reload(model: nn.Module) -> Iterator[None]:
    """Around a reload: weights of ``COPIED`` wait for its end, and are copied then into what the model computes with.

    A reload gives a model empty tensors, and fills those whose loaders were called: a plain copy would be lost.
    """
    names, waiting = COPIED.get(type(model).__name__, ()), list[tuple[str, Tensor]]()
    if not names:
        yield
        return
    loader: Any = model
    load = loader.load_weights

    def others(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if any(part in name for part in names):
                waiting.append((name, tensor))
            else:
                yield name, tensor

    loader.load_weights = lambda weights: load(others(weights))
    try:
        yield
    finally:
        loader.load_weights = load
    load(waiting)


def of_own_layers(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Leaves a tied head out where the engine computes logits with the embedding: 0.32 refuses the name, 0.25 skips it."""
    has_head = any("lm_head" in name for name, _ in model.named_modules(remove_duplicate=False))
    return ((name, tensor) for name, tensor in weights if has_head or not name.startswith("lm_head."))


def repack_tied_heads(model: nn.Module) -> None:
    """0.25 leaves a tied head out of a reload, since it has the weight already; on a CPU it computes with a copy."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    for head in embeddings:
        if isinstance(head, ParallelLMHead) and any(head.weight is e.weight for e in embeddings if e is not head):
            head.quant_method.process_weights_after_loading(head)


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
