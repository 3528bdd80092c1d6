"""Optimizer steps on weights in half precision: which optimizers make them land, and a refusal of those that do not.

bfloat16 has 8 significant bits: a weight of 0.03 has neighbours 0.0001 away, and a step of 1e-6 rounds to nothing. Half a
percent of a real model's weights move in an AdamW step at that rate; the others stay where they were, step after step,
while loss and gradient look as they should.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.distributed.sharding import local
from grpo_lightning.types import OptimizerFactory

HALF_PRECISIONS = (torch.bfloat16, torch.float16)
LEAST_MOVED_SHARE = 0.1
"""Of the weights, which a step of the learning rate has to change where the optimizer keeps no account of rounding."""
SAMPLED_WEIGHTS = 2**16
PROBE_STEPS = 256
PROBE_STEP = 1 / 64
"""Of the distance between neighbouring numbers: what rounds away each time, and adds up to four of them over all steps."""


def moved_share(weights: list[Tensor], step: float) -> tuple[int, int]:
    """How many of a fixed sample of weights a step of this size changes in their dtype, and how many were tried.

    Args:
        weights: Of any shape, sharded ones too, of which this rank's part is tried.
        step: What is added, such as the learning rate, which is about what AdamW moves a weight by.

    Example:
        >>> moved_share([torch.tensor([1.0, 0.5, 1e-4]).bfloat16()], 1e-3)  # neighbours are 0.0078, 0.0039 and 4e-7 away
        (1, 3)
    """
    each, moved, tried = max(1, SAMPLED_WEIGHTS // max(len(weights), 1)), 0, 0
    for weight in weights:
        sample = spread_sample(weight, each)
        moved += int(((sample + step).to(sample.dtype) != sample).sum())
        tried += sample.numel()
    return moved, tried


def spread_sample(weight: Tensor, count: int) -> Tensor:
    """Up to ``count`` entries of this rank's part of a weight, evenly spread, always the same; a view where it can be."""
    flat = local(weight.detach()).flatten()
    return flat[:: max(1, flat.numel() // count)][:count]


def keeps_small_steps(factory: OptimizerFactory, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether steps that rounding takes away one by one add up with this optimizer: tried on a small weight.

    True for Kahan summation, stochastic rounding and float32 copies; False for torch's and bitsandbytes' AdamW.

    Args:
        factory: Makes the optimizer.
        dtype: Of the weights.
        device: Of the weights.
    """
    start = 1.0
    distance = torch.finfo(dtype).eps
    weight = nn.Parameter(torch.full((64, 64), start, dtype=dtype, device=device))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        optimizer = factory([weight])
        for group in optimizer.param_groups:
            rate = distance * PROBE_STEP
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
        for _ in range(PROBE_STEPS):
            weight.grad = -torch.ones_like(weight)
            optimizer.step()
    wanted = distance * PROBE_STEP * PROBE_STEPS
    return (weight.detach().float().mean().item() - start) > 0.5 * wanted


def stays_without_gradient(factory: OptimizerFactory, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights without a gradient are numbers after a step: tried on a small weight.

    False for torch's AdamW on float16 weights on a CPU, where its eps of 1e-8 is 0, and the step 0 by 0.

    Args:
        factory: Makes the optimizer.
        dtype: Of the weights.
        device: Of the weights.
    """
    weight = nn.Parameter(torch.ones(64, 64, dtype=dtype, device=device))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        optimizer = factory([weight])
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    return bool(weight.isfinite().all())


def check_finite_steps(optimizer: Optimizer, factory: OptimizerFactory) -> None:
    """Refuses float16 weights under an optimizer that makes NaN of those without a gradient, such as unseen tokens' rows.

    Args:
        optimizer: That of the run.
        factory: Makes another one of its kind.

    Raises:
        ValueError: With what to use instead.
    """
    weights = [
        weight for group in optimizer.param_groups for weight in group["params"] if weight.dtype == torch.float16
    ]
    if weights and not stays_without_gradient(factory, torch.float16, weights[0].device):
        raise ValueError(
            f"model.optimizer: {type(optimizer).__name__} makes NaN of float16 weights that have no gradient: what it adds to "
            "denominators (eps) is 0 in float16. Use trainer.precision=bf16-mixed or bf16-true, or an eps of 1e-4."
        )


def check_steps_land(optimizer: Optimizer, factory: OptimizerFactory) -> None:
    """Refuses half-precision weights under an optimizer whose steps are mostly rounded away; on all ranks together.

    Args:
        optimizer: That of the run, with its scheduler if it has one.
        factory: Makes another one of its kind.

    Raises:
        ValueError: With the share of weights that move and what to use instead.
    """
    groups = [(group.get("initial_lr", group["lr"]), group["params"]) for group in optimizer.param_groups]
    halves = [w for _, weights in groups for w in weights if w.dtype in HALF_PRECISIONS]
    rate = max((float(lr) for lr, _ in groups), default=0.0)
    counts = gather_objects(moved_share(halves, rate))
    moved, tried = (sum(rank[i] for rank in counts) for i in (0, 1))
    if not tried or rate == 0 or moved >= LEAST_MOVED_SHARE * tried:
        return
    if keeps_small_steps(factory, halves[0].dtype, halves[0].device):
        return
    dtype, name = str(halves[0].dtype).removeprefix("torch."), type(optimizer).__name__
    raise ValueError(
        f"model.optimizer: {name} with lr={rate:g} trains {dtype} weights, and a step of that size changes {moved / tried:.1%} "
        f"of them: rounding takes the rest away, and {name} keeps no account of it. Use trainer.precision=bf16-mixed, which "
        "keeps float32 weights (16 bytes a parameter with gradients and moments). Where they do not fit, an optimizer that "
        "adds up what rounding takes (10 bytes): model.optimizer.class_path=optimi.AdamW with init_args "
        f"{{lr: {rate:g}, betas: [0.9, 0.999], eps: 1.0e-8}}. Or model.allow_rounded_steps=true, to train like this."
    )
