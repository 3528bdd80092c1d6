"""What a server is told of the weights that come: by one rank of several, while the others are busy."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from toy_models import build_model

from grpo_lightning.distributed.sharding import shard
from grpo_lightning.generation.vllm.weights.stream import WeightStream

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "dora": LORA | {"use_dora": True},
    "saved": LORA | {"modules_to_save": ["lm_head"]},
    "tokens": LORA | {"trainable_token_indices": [3, 5]},
    "experts": {
        **{"r": 4, "target_modules": [], "init_lora_weights": False},
        "target_parameters": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
    },
}
Layout = list[tuple[str, torch.dtype, tuple[int, ...]]]


def policy_of(architecture: str, adapter: str) -> Any:
    model = build_model(architecture).bfloat16()
    return get_peft_model(model, LoraConfig(**ADAPTERS[adapter])) if ADAPTERS[adapter] else model


def sent_by(stream: WeightStream) -> Layout:
    return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in stream]


def layout_and_weights(architecture: str, adapter: str) -> tuple[Layout | None, Layout]:
    """The layout on the first rank, and what each then sends; as ``NCCLTransfer.send`` asks for them."""
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    policy = policy_of(architecture, adapter)
    shard(policy, init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))
    assert any(isinstance(weight, DTensor) for weight in policy.parameters())
    stream = WeightStream(policy)
    layout = stream.layout() if dist.get_rank() == 0 else None
    return layout, sent_by(stream)


@pytest.mark.parametrize(("architecture", "adapter"), [("qwen2", "lora"), ("lfm2_moe", "full")])
def test_one_rank_alone_can_tell_what_all_of_them_will_send(architecture, adapter):
    (layout, sent), (_, sent_there) = run_ranks(2, layout_and_weights, architecture, adapter, seconds=40)
    assert layout == sent == sent_there == sent_by(WeightStream(policy_of(architecture, adapter)))


@pytest.mark.parametrize("adapter", ["lora", "dora", "saved", "tokens"])
def test_the_layout_is_what_is_sent_whatever_the_adapter(adapter):
    stream = WeightStream(policy_of("qwen2", adapter))
    assert stream.layout() == sent_by(stream)


def test_the_layout_of_adapted_experts_is_what_is_sent():
    stream = WeightStream(policy_of("lfm2_moe", "experts"))
    assert stream.layout() == sent_by(stream)
