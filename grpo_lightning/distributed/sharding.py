"""FSDP2: the policy's weights in parts, one on each rank, gathered layer by layer while a pass runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import MethodType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.distributed.tensor_parallel import split_layer, split_plan
from grpo_lightning.numerics.output_head import base_model, decoder_layers, output_head

Result = TypeVar("Result")


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks hold parts of the weights, and so have to run every pass together."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def shard(model: PreTrainedModel, mesh: DeviceMesh, mixed: bool = False) -> PreTrainedModel:
    """Shards the model in place, layer by layer: no rank holds more than one layer of whole weights on its device.

    The first rank's weights count. Other ranks may bring the same model on the meta device, so that a host holds one
    copy and not one for each of its devices.

    Args:
        model: In ordinary memory on the first rank; with adapters or not.
        mesh: Of the strategy: data_parallel, over whose ranks weights are spread, and tensor_parallel, whose ranks
            split the layers' matrices before that. Weights outside the layers are spread over all ranks.
        mixed: Gather float32 weights as bfloat16, as ``bf16-mixed`` computes; gradients are added up in float32.

    Raises:
        ValueError: If the model does not say what its layers are.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ValueError(
            f"{type(base_model(model)).__name__} does not name its layers (_no_split_modules), so its weights cannot be "
            "sharded. Use trainer.strategy=ddp."
        )
    _check_same_layout(model)
    data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
    everyone = mesh._flatten() if tensor.size() > 1 else data
    plan = split_plan(base_model(model).config, tensor.size()) if tensor.size() > 1 else {}
    names = {module: name for name, module in output_head(model)[0].named_modules()} if plan else {}
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    for unit in (*layers, model):
        _receive(unit, _device(mesh))
        if unit in names:
            split_layer(unit, names[unit], plan, tensor)
        original = type(unit)
        fully_shard(unit, mesh=everyone if unit is model else data, mp_policy=policy)
        type(unit).__module__ = original.__module__  # transformers reads a model's source by the name of its module
    model.call_gathered = MethodType(_call, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "call_gathered")
    return model


def plain_class(model: nn.Module) -> type:
    """The class as it was before ``fully_shard`` put one of its own, of another name, in its place."""
    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def call_gathered(model: nn.Module, function: Callable[..., Result], *args: Any) -> Result:
    """``function(*args)``, inside of which parts of the model, the output matrix too, can be used one by one."""
    if not isinstance(model, FSDPModule):
        return function(*args)
    # Bound, because FSDP2 moves the tensors among a call's arguments to its device: rollouts are indexed on the host.
    result: Result = cast(Any, model).call_gathered(partial(function, *args))
    if not torch.is_grad_enabled():  # no backward pass will let go of the outermost weights, and they would grow old
        model.reshard()
    return result


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, gathered by all ranks together; any other tensor itself."""
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.device_mesh.ndim > 1:  # one dimension after the other, or torch warns of it
        tensor = tensor.redistribute(placements=(Replicate(), tensor.placements[1]))
    return tensor.full_tensor()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_first_rank(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The pairs with whole tensors, one at a time, on the first rank; nothing on the others, which help to gather."""
    for name, tensor in pairs:
        gathered = whole(tensor)
        if is_first_rank():
            yield name, gathered


@torch.no_grad()
def copy_into(tensor: Tensor, source: Tensor) -> None:
    """Writes a whole tensor, the same on all ranks, into a sharded or an ordinary one."""
    if isinstance(tensor, DTensor):
        source = distribute_tensor(source.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(source)


def by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters by the ranks they are spread over: torch's operations on many tensors take one kind at a time."""
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault(mesh, []).append(parameter)
    return list(groups.values())


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scales gradients down to a global 2-norm; returns the norm before that, over all ranks, a 0-dim tensor."""
    gradients = [[p.grad for p in group if p.grad is not None] for group in by_mesh(parameters)]
    norms = [whole(torch.nn.utils.get_total_norm(group)) for group in gradients]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for group in gradients:
        torch._foreach_mul_([g.to_local() if isinstance(g, DTensor) else g for g in group], scale)
    return norm


def is_first_rank() -> bool:
    """True on rank 0, and without ranks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _call(model: nn.Module, function: Callable[[], Result]) -> Result:
    # FSDP2 hangs its hooks on what comes back, which views may lose; it warns of every one.
    return tree_map_only(Tensor, lambda tensor: tensor.clone() if tensor._is_view() else tensor, function())


def _check_same_layout(model: nn.Module) -> None:
    """Refuses ranks that brought different models: what one sends the other could not hold."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    mine = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors]
    for rank, theirs in enumerate(gather_objects(mine)):
        if theirs != mine:
            difference = sorted(map(str, set(mine) ^ set(theirs)))[:2]
            raise RuntimeError(f"rank {rank} has another model than this one: {difference}. Use the same config.")


def _device(mesh: DeviceMesh) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")


def _receive(unit: nn.Module, device: torch.device) -> None:
    """Puts the first rank's tensors on the device of every rank; tensors that are tied stay tied."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for module in unit.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if id(tensor) not in known:
                    known[id(tensor)] = (tensor, _broadcast(tensor, device))  # kept, so that ids are too
                tensors[name] = known[id(tensor)][1]  # type: ignore[assignment]


def _broadcast(tensor: Tensor, device: torch.device) -> Tensor:
    here = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device).contiguous()
    dist.broadcast(here, src=0)
    return nn.Parameter(here, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else here
