"""4-bit weights of bitsandbytes as the numbers they stand for, and kept in the layout that training needs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def keep_trainable_layout(policy: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    Its layers (0.50) repack themselves in their first pass in evaluation mode, in place, for a kernel that rounds to
    bfloat16 and has no gradient. After the first rollouts such a policy could not be trained any more.
    """
    for module in policy.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def dequantized(weight: Tensor) -> Tensor:
    """The numbers a 4-bit weight stands for; any other weight itself.

    Weights that bitsandbytes has repacked for inference on a CPU are read in that layout, and left in it. Their scales
    were rounded to bfloat16 when it did so, hence the numbers differ from those before by up to 2^-8 of each.
    """
    if type(weight).__name__ != "Params4bit":
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    state: Any = weight.quant_state  # type: ignore[attr-defined]
    if not getattr(state, "packing_format_for_cpu", False):
        return dequantize_4bit(weight.data, state)
    return dequantize_4bit(*_unpacked(weight.data, state))


def outline(weight: Tensor) -> Tensor:
    """An empty tensor on the meta device, of the dtype and the whole shape that the numbers of a weight have.

    Args:
        weight: 4-bit, sharded or any other. It is neither dequantised nor gathered.
    """
    state: Any = getattr(weight, "quant_state", None)  # a 4-bit weight is stored flat
    numbers = weight if state is None else state
    return torch.empty(tuple(numbers.shape), dtype=numbers.dtype, device="meta")


def _unpacked(packed: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Codes and state as they were before repacking, but for scales that stay rounded and are not quantised again.

    bitsandbytes's inverse writes to the state it is given and restores quantised scales only by quantising them anew,
    others not at all: it gets a copy, and the scales are put right here.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    own = copy.copy(state)
    own.original_nested = False
    codes, own = _convert_weight_packed_for_cpu_inverse(packed, own)
    own.absmax = state.absmax.T.reshape(-1).float()  # (K / blocksize, N) to one for each block, row by row
    return codes, own
