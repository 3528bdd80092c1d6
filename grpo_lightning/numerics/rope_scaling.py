"""Rotary frequencies that depend on how long a sequence is, fixed once for all sequences of a run.

LongRoPE (arXiv:2402.13753; Phi-3, Phi-4-mini) has two sets of frequencies, and dynamic NTK scaling one for every length.
transformers chooses by the longest sequence of each forward pass: what a token's neighbours are then changes its logprob,
hence the gradient depends on the split into micro-batches, and a completion that grows past the boundary is read with
keys that were turned otherwise. Engines choose once, by the longest sequence that they admit, and so does this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FIXED = "fixed"
"""What a module's ``rope_type`` is afterwards: none of those whose frequencies transformers updates in a forward pass."""


def fix_rope_scaling(model: nn.Module, longest: int | None = None) -> list[str]:
    """Gives every rotary embedding the frequencies of the longest sequence; what is fixed already stays as it is.

    Args:
        model: A transformers model, with adapters or not.
        longest: Tokens of a prompt with its completion; None for all positions of the model.

    Returns:
        What was chosen, in words, each choice once; empty for models whose frequencies do not depend on the length.
    """
    said: dict[str, None] = {}
    for module in model.modules():
        rotary: Any = module  # its attributes are plain ones
        kinds = getattr(rotary, "rope_type", None)
        if isinstance(kinds, str) and _depends_on_length(kinds):
            said[_fix(rotary, kinds, None, longest)] = None
            rotary.rope_type = FIXED
        elif isinstance(kinds, dict):
            dependent = {layer_type: kind for layer_type, kind in kinds.items() if _depends_on_length(kind)}
            for layer_type, kind in dependent.items():
                said[_fix(rotary, kind, layer_type, longest)] = None
            rotary.rope_type = kinds | dict.fromkeys(dependent, FIXED)
    return list(said)


def _depends_on_length(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


@torch.no_grad()
def _fix(module: nn.Module, kind: str, layer_type: str | None, longest: int | None) -> str:
    """Replaces the frequencies of one module, for one of its layer types where it has several."""
    config: Any = module.config
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    length = longest if longest is not None else config.max_position_embeddings
    prefix = "" if layer_type is None else f"{layer_type}_"
    device = getattr(module, f"{prefix}inv_freq").device
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, device, seq_len=length, layer_type=layer_type)
    module.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
    setattr(module, f"{prefix}attention_scaling", scaling)
    if kind != "longrope":
        return f"the frequencies of its dynamic RoPE for {length} tokens"
    boundary = parameters["original_max_position_embeddings"]
    name = "long" if length > boundary else "short"
    return (
        f"the {name} factors of its LongRoPE, because sequences may have {length} tokens and {boundary} is the boundary"
    )
