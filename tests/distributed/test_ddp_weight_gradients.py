"""DDP with micro-batches whose weight gradients are added up in place, on real ranks."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel
from toy_models import build_model

from grpo_lightning.scoring.weight_gradients import WeightGradients

IDS = torch.arange(2, 42)[None]
PARTS = [IDS[:, :9], IDS[:, 9:23], IDS[:, 23:]]


def loss_of(model, ids):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, use_cache=False).logits
    return -logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).sum()


def gradients_of_rank():
    """What DDP leaves where all micro-batches but the last are added up in place, and where autograd adds."""
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        model, gradients = build_model("qwen2").train(), WeightGradients()
        if in_place:
            gradients.install(model)
        wrapped, rank = DistributedDataParallel(model), dist.get_rank()
        for _ in range(2):  # buckets are laid out anew after the first
            wrapped.zero_grad()
            for ids in (PARTS[rank], PARTS[0]):
                with wrapped.no_sync(), gradients.in_place():
                    loss_of(wrapped, ids).backward()
            loss_of(wrapped, PARTS[rank + 1]).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    return found


def test_ranks_exchange_what_was_added_in_place():
    (ours, plain), (others, _) = run_ranks(2, gradients_of_rank)
    for name, gradient in ours.items():
        assert torch.equal(gradient, others[name])
        torch.testing.assert_close(gradient, plain[name], rtol=2e-2, atol=5e-3 * float(plain[name].abs().max()))
