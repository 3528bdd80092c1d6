"""Which way a model is scored, settled by comparing ways on a few random tokens; what disagrees gives way to the next slower one."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import restore_flash_attention_impl

from grpo_lightning.distributed.sharding import call_gathered, is_sharded
from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.scoring.fast_kernels import (
    fused_modules,
    has_compiled_layers,
    liger_obstacle,
    plain_kernels,
    remove_liger_kernels,
    uncompiled_layers,
)
from grpo_lightning.scoring.forward import ForwardPass
from grpo_lightning.scoring.packed_attention import activate_flash_attention_3
from grpo_lightning.scoring.probe import (
    check_positions,
    computes_in_float32,
    disagreement,
    packing_obstacle,
    probe_rollouts,
    windows_obstacle,
)

logger = logging.getLogger(__name__)


def settle(forward: ForwardPass, insists: bool) -> None:
    """Leaves ``forward`` the fastest way that agrees with the model's own forward pass: packed, padded, row by row.

    Fused kernels inside the layers are compared likewise with the model's own code; compiled layers are left out, whose
    compilation is long and is one for training, another one for a probe. What gives way is said once.

    Args:
        forward: Its layout and its model's attention and kernels may change.
        insists: Whether packed was asked for.

    Raises:
        ValueError: If the config insists on what the model does not support, or ranks could not take the last way together.
    """
    model = forward.model
    name = type(base_model(model)).__name__
    with evaluating(model), uncompiled_layers(model):
        _settle_kernels(forward)  # first: a kernel that does not run here would end any other check
        call_gathered(model, check_positions, base_model(model), forward.readout, forward.device)
        if forward.layout == "packed":
            reason = _packed_or_why_not(forward)
            if reason is None:
                return
            _leave_packed(forward, insists, reason)
        reason = _disagreement(forward, _expected(forward))
    if reason is not None and is_sharded(model):
        raise ValueError(
            f"{name} has to be scored from its full logits, one completion at a time ({reason}), which weights "
            "spread over ranks do not allow: ranks have different numbers of them. Use trainer.strategy=ddp."
        )
    if reason is not None:
        forward.is_plain = True
        logger.warning("%s is scored from its full logits, which needs more memory: %s.", name, reason)


def slow_ways(forward: ForwardPass) -> dict[str, str]:
    """What of a settled pass is not done the fastest way, and why: layout, attention, head, kernels."""
    ways = {}
    if forward.layout == "padded":
        ways["layout"] = "padded micro-batches, not packed ones"
    elif forward.slow_attention is not None:
        ways["attention"] = f"padded blocks, because {forward.slow_attention}"
    head = "all logits of a completion at once" if forward.is_plain else forward.readout.slow_way(forward.device)
    if head is not None:
        ways["head"] = head
    if not fused_modules(forward.model) and not has_compiled_layers(forward.model):
        reason = (
            liger_obstacle(forward.device) or "model.use_liger_kernel=false, or Liger does not know the architecture"
        )
        ways["kernels"] = f"norms and activations one operation at a time ({reason})"
    return ways


def _settle_kernels(forward: ForwardPass) -> None:
    """Keeps fused kernels only where they agree with the model's own code."""
    model = forward.model
    if not fused_modules(model):
        return
    with plain_kernels(model):
        expected = _expected(forward)
    try:
        found = _expected(forward)
        reason = disagreement("their", found, expected, computes_in_float32(model, forward.device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler that does not run on this machine, for example
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        remove_liger_kernels(model)
        name = type(base_model(model)).__name__
        logger.warning("%s is trained without Liger's kernels, which is slower: %s.", name, reason)


def _packed_or_why_not(forward: ForwardPass) -> str | None:
    """Tries packing, with FlashAttention 3 first where there is one; returns what is wrong with it."""
    expected = _expected(forward)  # before: FlashAttention 3 would compute these too
    faster = activate_flash_attention_3(forward.device)
    reason = _packed_obstacle(forward, expected)
    if reason is not None and faster:
        restore_flash_attention_impl()
        reason = _packed_obstacle(forward, expected)
    return reason


def _packed_obstacle(forward: ForwardPass, expected: Tensor) -> str | None:
    model = base_model(forward.model)
    obstacle = packing_obstacle(model)
    if obstacle is not None:
        return obstacle
    try:
        packing = forward.packing_of(**_probe(forward))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model that was not made for this may raise; the reason is shown
        return f"{type(error).__name__}: {error}"
    forward.slow_attention = packing.slow_path
    return windows_obstacle(model, packing.windows) or _disagreement(forward, expected)


def _leave_packed(forward: ForwardPass, insists: bool, reason: str) -> None:
    name = type(base_model(forward.model)).__name__
    if insists:
        raise ValueError(
            f"layout='packed' does not work with {name}: {reason}. Choose 'auto' or 'padded', which trains padded "
            "micro-batches sorted by length."
        )
    forward.leave_packed()
    logger.warning("%s is trained on padded micro-batches, which is slower than packed: %s.", name, reason)


def _disagreement(forward: ForwardPass, expected: Tensor) -> str | None:
    """How the scores of random tokens differ from those of the model's own forward pass, if they do."""
    found = forward.score(**_probe(forward)).logprobs
    return disagreement(forward.layout, found, expected, computes_in_float32(forward.model, forward.device))


def _expected(forward: ForwardPass) -> Tensor:
    """Scores of the random tokens by the model's own forward pass."""
    return forward.score_plain(**_probe(forward)).logprobs


def _probe(forward: ForwardPass) -> dict[str, Any]:
    rollouts = forward.probe or probe_rollouts(base_model(forward.model).config.get_text_config().vocab_size)
    return {"rollouts": rollouts, "rows": torch.arange(rollouts.num_completions)}
