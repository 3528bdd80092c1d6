"""Tensor parallelism: the matrices of a layer in parts on ranks that run every pass together.

Which matrices are split, and how, is the model's own plan (``base_model_tp_plan`` of its transformers config); torch's
``parallelize_module`` carries it out. Embeddings and output head stay whole: their memory is FSDP's to divide.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle
from transformers import PretrainedConfig

from grpo_lightning.numerics.output_head import base_model, output_head

STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "colwise_gather_output": partial(ColwiseParallel, output_layouts=Replicate()),
    "rowwise_split_input": partial(RowwiseParallel, input_layouts=Replicate()),
}
"""transformers' names for what torch calls these."""
PART_OF_THE_HEADS = "replicated_with_grad_allreduce"
"""transformers' name for a whole weight that is applied to the heads of its rank, such as Qwen3's norm of queries."""


def split_plan(config: PretrainedConfig, size: int) -> dict[str, str]:
    """The style of each module of the decoder that is split, by its name with ``*`` for a layer's number.

    Args:
        config: Of the model.
        size: Ranks that hold a matrix between them.

    Raises:
        ValueError: If the model cannot be split over so many, with what to change.
    """
    text = config.get_text_config()
    whole_plan: dict[str, str] = getattr(text, "base_model_tp_plan", None) or {}
    plan = {name: style for name, style in whole_plan.items() if ".*." in name}  # of the layers
    refusal = f"trainer.strategy.init_args.tensor_parallel_size={size}: "
    way_out = "Use tensor_parallel_size=1, which shards the weights all the same."
    if not plan:
        raise ValueError(f"{refusal}{text.model_type} has no plan of how to split its layers. {way_out}")
    unknown = sorted(set(plan.values()) - {*STYLES, PART_OF_THE_HEADS})
    if unknown:
        raise ValueError(f"{refusal}{text.model_type} splits its layers in ways not built here ({unknown}). {way_out}")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        count = getattr(text, name, None)
        if isinstance(count, int) and count % size:
            raise ValueError(f"{refusal}the model's {name}={count} cannot be divided by it. Use a divisor, or 1.")
    return plan


def split_layer(layer: nn.Module, name: str, plan: dict[str, str], mesh: DeviceMesh) -> None:
    """Splits one layer in place; every rank brings the whole of it.

    Args:
        layer: With its weights on the device of the mesh.
        name: Of the layer in the decoder, such as ``layers.0``.
        plan: Of ``split_plan``.
        mesh: The ranks that hold it between them, one dimension.
    """
    styles = {inner: plan.get(_pattern(f"{name}.{inner}")) for inner, _ in layer.named_modules()}
    parallelize_module(layer, mesh, {inner: STYLES[style]() for inner, style in styles.items() if style in STYLES})


@torch.no_grad()
def settle_gradients(model: nn.Module, mesh: DeviceMesh) -> None:
    """Makes the gradients of whole weights of the layers right and equal on the ranks that share them.

    Each of these ranks has gone through the same tokens. Of a norm inside the heads it has the share of its own heads,
    and shares are added up. Of every other whole weight it has the gradient itself up to rounding; the mean keeps the
    copies from drifting apart.

    Args:
        model: With gradients.
        mesh: Of the strategy: data_parallel, tensor_parallel.
    """
    data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
    plan = split_plan(base_model(model).config, tensor.size())
    shared: list[tuple[Tensor, int]] = []
    for name, parameter in output_head(model)[0].named_parameters():
        if isinstance(parameter.grad, DTensor) and parameter.grad.device_mesh == data:
            is_share = plan.get(_pattern(name.rpartition(".")[0])) == PART_OF_THE_HEADS
            shared.append((parameter.grad.to_local(), 1 if is_share else tensor.size()))
    if not shared:
        return
    flat = torch.cat([gradient.flatten() for gradient, _ in shared])
    dist.all_reduce(flat, group=tensor.get_group())
    sizes = [gradient.numel() for gradient, _ in shared]
    for (gradient, divisor), total in zip(shared, flat.split(sizes), strict=True):
        gradient.copy_(total.view_as(gradient) / divisor)


def _pattern(name: str) -> str:
    """A module's name as plans write it.

    Example:
        >>> _pattern("layers.11.self_attn.q_proj")
        'layers.*.self_attn.q_proj'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
