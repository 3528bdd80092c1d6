"""FSDP2 moves the tensors of a call to its device: a pass's rollouts and indices, which stay on the host, are none of them."""

from __future__ import annotations

import os

import torch
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from toy_models import build_model

from grpo_lightning.distributed.sharding import call_gathered, shard


def call_on_a_device_that_is_not_there() -> str:
    """The device of an argument inside a gathered call of a model that FSDP2 believes to be on a GPU."""
    rank, count = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    model = shard(build_model(), mesh)
    rows = torch.arange(3)
    with torch.no_grad():
        call_gathered(model, lambda index: index, rows)  # settles FSDP2's state
        model._get_fsdp_state()._device = torch.device("cuda", 0)
        return str(call_gathered(model, lambda index: index, rows).device)


def test_arguments_of_a_gathered_call_stay_where_they_are():
    assert run_ranks(2, call_on_a_device_that_is_not_there) == ["cpu", "cpu"]
