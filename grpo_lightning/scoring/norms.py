"""The norms in front of attention and MLP as one compiled kernel each way, in the dtype that the layers behind compute in.

A norm of transformers is half a dozen operations over the residual stream, and under autocast each linear layer behind it
casts what it returns for itself. ``torch.compile`` makes one kernel of them forward and two backward, for any number of
tokens, at less memory traffic than kernels that return float32.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._dynamo import maybe_mark_dynamic

from grpo_lightning.numerics.output_head import decoder_layers, decoder_of
from grpo_lightning.scoring.packed_attention import compute_dtype

NORMS_FEED_LINEAR_LAYERS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Types of models whose norms before attention and MLP feed linear layers and nothing else."""


VARIANTS = 64
"""Of the compiled code, at most: with and without gradient, of frozen and trained weights, of models of other sizes. Torch
stops at 8 by itself, and what comes after runs one operation at a time."""


def allow_variants() -> None:
    """Raises torch's limit to ``VARIANTS``, for the whole process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)


def compile_norms(model: nn.Module) -> None:
    """Gives the norms in front of attention and MLP the compiled code; inside autocast they return its dtype.

    Norms that peft has wrapped to train something beside them stay as they are. Backward passes leave what they need to a
    second one (``retain_graph=True``), of code that torch compiles from here on.

    Args:
        model: Of a type in ``NORMS_FEED_LINEAR_LAYERS``, or with a language model that is.
    """
    allow_variants()
    torch._functorch.config.donated_buffer = False  # saves a number a row here, and torch refuses such a second pass
    decoder = decoder_of(model)
    # A model of images names the layers of its tower too.
    of_text = set() if decoder is None else set(decoder.modules())
    for layer in of_text.intersection(decoder_layers(model)):
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(layer, name)
            if not isinstance(norm, BaseTunerLayer):
                norm.__dict__["forward"] = MethodType(forward, norm)


def forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Of a norm, by which name pickle finds the one of its class."""
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    if not torch.compiler.is_compiling():  # not inside somebody else's compiled code
        maybe_mark_dynamic(rows, 0)
    normed: Tensor = _compiled(rows, self.weight, self.variance_epsilon, compute_dtype(hidden_states))
    return normed.view_as(hidden_states)


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Root mean square layer normalization (Zhang & Sennrich 2019, arXiv:1910.07467), as transformers' models compute it.

    Args:
        rows: ``(n, H)``.
        weight: ``(H,)``.
        epsilon: Added to the mean square.
        dtype: Of the result.

    Returns:
        ``(n, H)``.
    """
    wide = rows.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (weight * normed.to(rows.dtype)).to(dtype)


_compiled = torch.compile(rms_norm)
"""Compiled when it is first called."""
