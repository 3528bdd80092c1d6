"""What one GRPO step learns from: rollouts with their advantages and the logprobs they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.lessons import Lessons
from grpo_lightning.algorithm.token_batch import TokenBatch
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.load_balance import ExpertLoads
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
    loads_of_step: ExpertLoads | None = None
    """Of the optimizer step over all ranks, for a load-balancing loss; None where this micro-batch is all of it."""


@dataclass(frozen=True)
class Experience:
    """Rollouts, their advantages and mask on the CPU; on the training device the logprobs of each token."""

    rollouts: Rollouts
    advantages: Tensor
    """(N,) or (T,) float32, CPU: of each completion, or of each token; 0 until the rewards are known."""
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
    is_marked: Tensor | None = None
    """(T,) bool: tokens that the loss has marked among all of the step's; None for a loss that marks none."""
    lessons: Lessons | None = None
    """Of a run with teachers; None where the first of them reads the prompts as they are."""

    def __post_init__(self) -> None:
        _check_advantages(self.advantages, self.rollouts)
        flags = {"mask": self.mask, "is_uncertain": self.is_uncertain, "is_marked": self.is_marked}
        logprobs = {name: getattr(self, name) for name in ("sampling_logprobs", "old_logprobs", "ref_logprobs")}
        tokens = self.rollouts.completion_ids.numel()
        for name, values in (flags | logprobs).items():
            if values is not None and values.shape != (tokens,):
                raise ValueError(
                    f"experience.{name} has shape {tuple(values.shape)}, but the step has {tokens} tokens."
                )

    @property
    def lessons_or_own(self) -> Lessons:
        """The lessons; where there are none, the rollouts as they are."""
        return self.lessons or Lessons(self.rollouts, torch.zeros(self.rollouts.num_prompts, dtype=torch.int64))

    @property
    def advantages_by_token(self) -> bool:
        """True where each token has an advantage of its own."""
        return self.advantages.shape != self.rollouts.completion_lengths.shape

    @property
    def token_advantages(self) -> Tensor:
        """(T,) float32, CPU."""
        return self.advantages if self.advantages_by_token else self.advantages[self.rollouts.token_rows()]

    @property
    def has_advantage(self) -> Tensor:
        """(N,) bool, CPU: False for a completion whose advantages are all 0."""
        if not self.advantages_by_token:
            return self.advantages != 0
        return self.rollouts.summed(self.advantages != 0) > 0

    def with_advantages(self, advantages: Tensor) -> Experience:
        """The same with advantages, which are known once all rewards are.

        Args:
            advantages: (N,) floating point, one per completion, or (T,), one per token.

        Raises:
            TypeError: If it is no tensor.
            ValueError: If it has another shape, or holds something else than finite numbers.
        """
        _check_advantages(advantages, self.rollouts)
        return replace(self, advantages=advantages.float().cpu())

    def token_batch(self, rows: Tensor) -> TokenBatch:
        """The tokens of the completions ``rows`` (CPU indices), in the order in which they are scored."""
        device, tokens = self.sampling_logprobs.device, self.rollouts.tokens_of(rows)
        index, mask = to_device(tokens, device), self.mask[tokens]
        row_of_token = torch.repeat_interleave(torch.arange(len(rows)), self.rollouts.completion_lengths[rows])
        counted = torch.zeros(len(rows)).index_add_(0, row_of_token, mask.float())
        return TokenBatch(
            rows=to_device(row_of_token, device),
            mask=to_device(mask, device),
            lengths=to_device(counted, device),
            advantages=to_device(self.advantages[tokens if self.advantages_by_token else rows], device),
            old_logprobs=None if self.old_logprobs is None else self.old_logprobs[index],
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[index],
            sampling_logprobs=self.sampling_logprobs[index],
            is_uncertain=None if self.is_uncertain is None else self.is_uncertain[index],
            is_marked=None if self.is_marked is None else self.is_marked[index],
        )


def per_completion(advantages: Tensor, rollouts: Rollouts) -> Tensor:
    """(N,): advantages as they are, or of (T,) the mean over each completion's tokens that the policy chose."""
    if advantages.shape == rollouts.completion_lengths.shape or advantages.shape != rollouts.completion_ids.shape:
        return advantages  # with_advantages refuses other shapes
    sums = rollouts.summed(advantages.float().cpu() * rollouts.completion_mask)
    return sums / rollouts.policy_lengths().clamp(min=1)


def _check_advantages(advantages: Tensor, rollouts: Rollouts) -> None:
    completions, tokens = rollouts.num_completions, rollouts.completion_ids.numel()
    if not isinstance(advantages, Tensor):
        raise TypeError(
            f"The advantages are a {type(advantages).__name__} and no tensor. Return a torch.Tensor with one value per "
            f"completion, ({completions},), or one per token, ({tokens},)."
        )
    if advantages.shape not in ((completions,), (tokens,)):
        raise ValueError(
            f"The advantages have shape {tuple(advantages.shape)}, but the step has {completions} completions of {tokens} "
            f"tokens in all. Return one value per completion, ({completions},), or one per token, ({tokens},), in the "
            "order of rollouts.completion_ids."
        )
    if not advantages.is_floating_point():
        raise ValueError(f"The advantages are {advantages.dtype}. Return floating point numbers.")
    wrong = (~advantages.isfinite()).nonzero()[:, 0]
    if len(wrong):
        first = int(wrong[0])
        row = first if len(advantages) == completions else int(rollouts.token_rows()[first])
        of_group = int((rollouts.group == rollouts.group[row]).sum())
        raise ValueError(
            f"The advantages hold {len(wrong)} values that are not finite, the first {advantages[first]} at completion {row}, one "
            f"of {of_group} of its prompt. Return finite numbers, 0 for a completion that teaches nothing."
        )
