"""What one GRPO step learns from: rollouts with their advantages and the logprobs they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.token_batch import TrainTokens
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.types import Rollouts


@dataclass(frozen=True)
class MicroBatch:
    """Completions of one forward and backward pass."""

    rows: Tensor
    """(M,) int64, CPU: completions in [0, N); empty in a pass that only other ranks need."""
    totals: StepTotals
    """Of the optimizer step that it belongs to, over all ranks."""
    is_last: bool
    """True for the last before the optimizer step: gradients are then reduced over ranks."""


@dataclass(frozen=True)
class Experience:
    """Rollouts, their advantages and mask on the CPU; on the training device the logprobs of each token."""

    rollouts: Rollouts
    advantages: Tensor
    """(N,) float32, CPU; 0 until the rewards are known."""
    mask: Tensor
    """(T,) bool, CPU: tokens that count in the loss."""
    sampling_logprobs: Tensor
    """(T,) float32 nats."""
    old_logprobs: Tensor | None
    """(T,) float32 nats at the weights that start the step; None where there is one update and they are the current."""
    ref_logprobs: Tensor | None
    """(T,) float32 nats under the reference; None where beta is 0."""
    is_uncertain: Tensor | None
    """(T,) bool: tokens among the step's most uncertain at the weights that start it; None to train all."""

    def with_advantages(self, advantages: Tensor) -> Experience:
        """The same with the (N,) advantages, which are known once all rewards are."""
        return replace(self, advantages=advantages)

    def train_tokens(self, rows: Tensor) -> TrainTokens:
        """The tokens of the completions ``rows`` (CPU indices), in the order in which they are scored."""
        device, tokens = self.sampling_logprobs.device, self.rollouts.tokens_of(rows)
        index, mask = to_device(tokens, device), self.mask[tokens]
        row_of_token = torch.repeat_interleave(torch.arange(len(rows)), self.rollouts.completion_lengths[rows])
        counted = torch.zeros(len(rows)).index_add_(0, row_of_token, mask.float())
        return TrainTokens(
            rows=to_device(row_of_token, device),
            mask=to_device(mask, device),
            lengths=to_device(counted, device),
            advantages=to_device(self.advantages[rows], device),
            old_logprobs=None if self.old_logprobs is None else self.old_logprobs[index],
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[index],
            sampling_logprobs=self.sampling_logprobs[index],
            is_uncertain=None if self.is_uncertain is None else self.is_uncertain[index],
        )
