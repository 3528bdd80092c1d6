"""Completions that were decoded in chunks, put together as rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lightning.generation.transformers.decoded_routes import collected_routes
from grpo_lightning.generation.transformers.decoding import Transcript
from grpo_lightning.types import Rollouts


def collect_rollouts(
    prompt_ids: Sequence[Sequence[int]], num_generations: int, decoded: Sequence[tuple[list[int], Transcript]]
) -> Rollouts:
    """Rollouts in prompt-major order from chunks in any order.

    Args:
        prompt_ids: B lists of token ids.
        num_generations: Completions of each.
        decoded: The numbers of a chunk's completions, and what was decoded.

    Raises:
        FloatingPointError: If a logprob is not finite.
    """
    completions: dict[int, tuple[list[int], Tensor, bool]] = {}
    for rows, output in decoded:
        for row, ids, logprobs, truncated in zip(
            rows, output.completion_ids, output.logprobs.cpu(), output.truncated, strict=True
        ):
            completions[row] = (ids, logprobs[: len(ids)], truncated)
    ordered = [completions[n] for n in range(len(prompt_ids) * num_generations)]
    ids = [token for tokens, _, _ in ordered for token in tokens]
    logprobs = torch.cat([row for _, row, _ in ordered]) if ordered else torch.zeros(0)
    check_finite(logprobs)
    return Rollouts(
        prompt_ids=torch.tensor([token for prompt in prompt_ids for token in prompt], dtype=torch.int64),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompt_ids], dtype=torch.int64),
        completion_ids=torch.tensor(ids, dtype=torch.int64),
        completion_lengths=torch.tensor([len(tokens) for tokens, _, _ in ordered], dtype=torch.int64),
        group=torch.arange(len(prompt_ids)).repeat_interleave(num_generations),
        sampling_logprobs=logprobs,
        truncated=torch.tensor([truncated for _, _, truncated in ordered], dtype=torch.bool),
        completion_mask=torch.ones(len(ids), dtype=torch.bool),
        routed_experts=collected_routes(
            [(rows, output.routes) for rows, output in decoded],
            [len(tokens) for tokens, _, _ in ordered],
            num_generations,
        ),
    )


def check_finite(logprobs: Tensor) -> None:
    """Raises FloatingPointError if the policy gave a token no probability that is a number."""
    if not logprobs.isfinite().all():
        raise FloatingPointError(
            "the policy's logits are not finite numbers, so no token can be drawn from them. "
            "The weights have diverged, or the precision overflows: lower the learning rate or use bf16."
        )
