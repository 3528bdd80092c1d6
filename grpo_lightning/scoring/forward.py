"""One forward pass over a micro-batch: hidden states that predict its completion tokens, or scores from full logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grpo_lightning.algorithm.load_balance import ExpertLoads, expert_loads, sum_of_loads
from grpo_lightning.numerics.deterministic_gather import rows_at
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.logprobs import selected_logprobs_of_module
from grpo_lightning.numerics.output_head import OutputHead, base_model
from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.packing import PackedBatch, PaddedBatch
from grpo_lightning.types import Rollouts


class TokenScores(NamedTuple):
    """Scores of the completion tokens of some rows, in the order of ``rollouts.tokens_of(rows)``."""

    logprobs: Tensor
    """(T,) float32 nats, with gradient when grad mode is on."""
    entropy: Tensor | None
    """(T,) float32 nats; None unless asked for."""
    beside: Tensor | None = None
    """(T,): what ``beside`` made of the hidden states; None unless asked for."""
    loads: ExpertLoads | None = None
    """What the routers did with the tokens of these rows and their prompts; None unless asked for, or without routers."""


class Decoded(NamedTuple):
    """What a decoder says of one micro-batch."""

    hidden: Tensor
    """(T, H) hidden states that predict the completion tokens."""
    loads: ExpertLoads | None
    """As in ``TokenScores``."""


Beside = Callable[[Tensor, OutputHead], Tensor]
"""Makes a ``(T,)`` tensor of the hidden states that predict the tokens and the head behind them."""


def decode_packed(
    decoder: nn.Module, batch: PackedBatch, packing: Packing, device: torch.device, with_loads: bool = False
) -> Decoded:
    """One packed row: the hidden states that predict its completion tokens, and what routers did with it."""
    states = decoder(
        input_ids=to_device(batch.input_ids[None], device),
        position_ids=to_device(batch.position_ids[None], device),
        # A mask of four dimensions passes through the model as it is: none is built, and packing needs none.
        attention_mask=torch.zeros(1, 1, 1, 1, device=device),
        use_cache=False,
        packing=packing,
        **_asking(with_loads),
    )
    hidden = rows_at(states.last_hidden_state[0], to_device(batch.score_index, device))
    return Decoded(hidden, _loads(decoder, states, batch.times) if with_loads else None)


def decode_padded(decoder: nn.Module, batch: PaddedBatch, device: torch.device, with_loads: bool = False) -> Decoded:
    """Right-padded rows, as ``decode_packed``."""
    # No mask: nothing attends to what follows it, so right padding is seen by padding alone.
    states = decoder(input_ids=to_device(batch.input_ids, device), use_cache=False, **_asking(with_loads))
    hidden = rows_at(states.last_hidden_state.flatten(0, 1), to_device(batch.score_index, device))
    return Decoded(hidden, _loads(decoder, states, batch.times) if with_loads else None)


def _asking(with_loads: bool) -> dict[str, bool]:
    return {"output_router_logits": True} if with_loads else {}


def _loads(decoder: nn.Module, states: Any, times: Tensor) -> ExpertLoads | None:
    """Of what the decoder says of its routers; None where it says nothing."""
    logits = states.router_logits
    if not logits:
        return None
    top_k = decoder.config.get_text_config().num_experts_per_tok  # type: ignore[union-attr, operator]
    return expert_loads(logits, to_device(times, logits[0].device), top_k)


def score_full_logits(
    model: nn.Module,
    rollouts: Rollouts,
    rows: Tensor,
    targets: Tensor,
    options: dict[str, Any],
    with_loads: bool = False,
) -> TokenScores:
    """The plain model row by row, with all logits in its own precision and a chunk at a time in float32.

    Args:
        model: As for ``Scorer``.
        rollouts: On the CPU.
        rows: ``(M,)`` int64, the completions.
        targets: ``(T,)`` int64 on the model's device, their tokens.
        options: Of ``selected_logprobs_of_module``, with the temperature.
        with_loads: Also return what the routers did.
    """
    plain = base_model(model)
    prompts, completions = rollouts.prompts(), rollouts.completions()
    logits, loads = [], []
    for row in rows.tolist():
        prompt = prompts[int(rollouts.group[row])]
        input_ids = to_device(torch.cat([prompt, completions[row]])[None], targets.device)
        output = plain(input_ids=input_ids, use_cache=False, **_asking(with_loads))
        logits.append(output.logits[0, len(prompt) - 1 : -1])
        loads.append(_loads(plain, output, torch.ones_like(input_ids[0])) if with_loads else None)
    flat = torch.cat(logits)
    # Cloned, because the head's output may be overwritten.
    scores = selected_logprobs_of_module(flat, torch.clone, targets, vocab_size=flat.shape[1], **options)
    return TokenScores(*scores, loads=sum_of_loads(loads))
