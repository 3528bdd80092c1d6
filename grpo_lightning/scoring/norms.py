"""The norms in front of attention and MLP as one compiled kernel each way, in the dtype that the layers behind compute in.

A norm of transformers is half a dozen operations over the residual stream, and under autocast each linear layer behind it
casts what it returns for itself. ``torch.compile`` makes one kernel of them forward and two backward, for any number of
tokens, at less memory traffic than kernels that return float32.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import maybe_mark_dynamic

from grpo_lightning.numerics.output_head import decoder_layers, decoder_of
from grpo_lightning.scoring.packed_attention import compute_dtype

NORMS_FEED_LINEAR_LAYERS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Types of models whose norms before attention and MLP feed linear layers and nothing else."""


def compile_norms(model: nn.Module) -> None:
    """Gives the norms in front of attention and MLP the compiled code; inside autocast they return its dtype.

    Args:
        model: Of a type in ``NORMS_FEED_LINEAR_LAYERS``, or with a language model that is.
    """
    decoder = decoder_of(model)
    of_text = (
        set() if decoder is None else set(decoder.modules())
    )  # a model of images names the layers of its tower too
    for layer in of_text.intersection(decoder_layers(model)):
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(layer, name)
            norm.__dict__["forward"] = MethodType(_compiled_forward, norm)


def _compiled_forward(self: Any, hidden_states: Tensor) -> Tensor:
    rows = hidden_states.flatten(0, -2)
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
