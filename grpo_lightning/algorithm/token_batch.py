"""What the loss of one micro-batch is computed from, and the terms it is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from grpo_lightning.algorithm.sampler_correction import SamplerWeights
from grpo_lightning.algorithm.segments import Segments


@dataclass(frozen=True)
class TrainTokens:
    """One micro-batch besides its current logprobs: T tokens of M whole completions, on the training device."""

    rows: Tensor
    """(T,) int64 in [0, M): the completion of each token."""
    mask: Tensor
    """(T,) bool: True where the policy chose the token and the completion counts (mask_truncated_completions)."""
    lengths: Tensor
    """(M,): tokens with a True mask, 0 for a completion that is masked as a whole."""
    advantages: Tensor
    """(M,) floating point."""
    old_logprobs: Tensor | None = None
    """(T,) nats, of the weights that the rollouts were sampled with; None: those are the current weights."""
    ref_logprobs: Tensor | None = None
    """(T,) nats, of the reference; needed if beta is not 0."""
    sampling_logprobs: Tensor | None = None
    """(T,) nats, as the sampler gave them; NaN where it gave none. Needed for the sampler correction."""
    is_uncertain: Tensor | None = None
    """(T,) bool: tokens that the policy term trains; needed if top_entropy_quantile < 1."""

    def __post_init__(self) -> None:
        for name in ("mask", "old_logprobs", "ref_logprobs", "sampling_logprobs", "is_uncertain"):
            values = getattr(self, name)
            if values is not None and values.shape != self.rows.shape:
                raise ValueError(f"{name} is {tuple(values.shape)}, but rows has {tuple(self.rows.shape)} tokens")
        if self.lengths.shape != self.advantages.shape:
            raise ValueError(
                f"lengths {tuple(self.lengths.shape)}, advantages {tuple(self.advantages.shape)}: not (M,)"
            )

    @property
    def segments(self) -> Segments:
        """Which token belongs to which completion."""
        return Segments(self.rows, self.mask, self.lengths)


@dataclass(frozen=True)
class LossTerms:
    """Intermediate values of one micro-batch's loss: the loss combines them, the metrics describe them."""

    logprobs: Tensor
    """(T,) nats, current policy, 0 outside the mask; carries gradient."""
    old_logprobs: Tensor
    """(T,) nats, no gradient."""
    ratio: Tensor
    """(T,) importance ratio at the chosen level; carries gradient."""
    trained: Tensor
    """(T,) bool: tokens of the policy term; all of the mask, or those of high entropy."""
    kept: Tensor | None
    """(M,) bool: completions that are not too far off-policy; None without a threshold."""
    correction: SamplerWeights | None
    """Sampler correction W; None if it is off."""
    vespo_weight: Tensor | None
    """(M,); None for other losses."""
    kl: Tensor | None
    """(T,) nats, ratio-corrected if so set; None without a reference. Carries gradient."""
