"""Whether a model can be scored the fast way: asked of the model itself, on a few random tokens, before training.

A list of supported architectures would be out of date with the next release of transformers, and a layout that the
model only half supports trains on wrong numbers without an error.
"""

from __future__ import annotations

from inspect import signature

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.scoring.readout import Readout
from grpo_lightning.types import Rollouts

EXACT_TOLERANCE = 1e-4
"""Nats by which float32 logprobs of two layouts may differ on average; rounding stays two orders below."""
ROUNDED_TOLERANCE = 0.15
"""The same for lower precision. Rounding alone gives a few hundredths, another context gives nats."""


def probe_rollouts(vocab_size: int) -> Rollouts:
    """Two groups of short random completions of unequal length, always the same."""
    generator = torch.Generator().manual_seed(0)
    prompts, completions = (
        [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]
        for lengths in ((5, 3), (4, 7, 2, 6, 1))
    )
    logprobs = [[0.0] * len(ids) for ids in completions]
    return Rollouts.from_lists(prompts, completions, logprobs, [False] * 5, [0, 0, 0, 1, 1])


def packing_obstacle(model: PreTrainedModel) -> str | None:
    """What in the model's config rules packing out, whatever a short probe would show."""
    config = model.config.get_text_config()
    for name in ("attention_dropout", "attn_pdrop"):
        if getattr(config, name, 0.0):
            return f"the packed kernels have no dropout and the model's config has {name}={getattr(config, name)}"
    if others := types_beside_attention(model):
        return f"its layers of type {', '.join(others)} look across the sequences of a pack"
    return None


def types_beside_attention(model: PreTrainedModel) -> list[str]:
    """What the model's config calls its layers that keep a state: convolutions, linear attention, state spaces."""
    return sorted(set(_layer_types(model)) - {"full_attention", "sliding_attention"})


def check_positions(model: PreTrainedModel, readout: Readout, device: torch.device) -> None:
    """Refuses a model whose scores of a sequence change with the positions of another one in the same pass.

    Short sequences would not show it: such position codes switch over at thousands of tokens. So three tokens are scored
    alone and beside three that stand at the model's last positions.

    Raises:
        ValueError: With the difference.
    """
    if "position_ids" not in signature(model.forward).parameters:
        return
    config = model.config.get_text_config()
    last = getattr(config, "max_position_embeddings", None) or 2**17
    ids = torch.arange(1, 4, device=device) % config.vocab_size
    near = torch.arange(3, device=device)
    far = near + last - 3
    alone = readout.output(ids[None], near[None])[0]
    if not alone.isfinite().all():
        return  # diverged weights are the business of whoever samples or trains with them
    rows = torch.stack([near, far])
    beside = readout.output(ids.repeat(2, 1), rows)[0]
    exact = computes_in_float32(model, device)
    difference = float((alone - beside).abs().mean())
    if difference <= (EXACT_TOLERANCE if exact else ROUNDED_TOLERANCE):
        return
    raise ValueError(
        f"{type(model).__name__} cannot be trained: the scores of a sequence change by {difference:.2g} nats on average "
        f"when one that reaches position {last - 1} is in the same pass, so the gradient would depend on "
        "model.max_tokens_per_microbatch, and the sampler would compute something else. Choose a model whose position "
        "code does not depend on the batch."
    )


def windows_obstacle(model: PreTrainedModel, windows: list[int | None]) -> str | None:
    """How the windows that the layers asked for differ from the configured ones; a probe is shorter than a window.

    Args:
        model: The model that ran.
        windows: ``Packing.windows`` after one forward pass. Empty if the attention was never called.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    expected = [window if layer == "sliding_attention" else None for layer in _layer_types(model)]
    if windows == expected:
        return None
    return f"its layers asked for packed attention with windows {windows} where the config says {expected}"


def disagreement(name: str, logprobs: Tensor, expected: Tensor, exact: bool) -> str | None:
    """How two scorings of the same tokens differ, if they do by more than rounding.

    Args:
        name: Of the layout in question.
        logprobs, expected: ``(T,)`` nats.
        exact: Whether both were computed in float32.
    """
    difference = float((logprobs - expected).abs().mean())
    # Written so that NaN disagrees.
    if difference <= (EXACT_TOLERANCE if exact else ROUNDED_TOLERANCE):
        return None
    return f"{name} logprobs differ from the plain model's by {difference:.2g} nats on average"


def computes_in_float32(model: nn.Module, device: torch.device) -> bool:
    """Whether matrix products are neither in half precision nor in TF32."""
    if torch.is_autocast_enabled(device.type) or next(model.parameters()).dtype != torch.float32:
        return False
    return device.type != "cuda" or torch.get_float32_matmul_precision() == "highest"


def _layer_types(model: PreTrainedModel) -> list[str]:
    config = model.config.get_text_config()
    return getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
