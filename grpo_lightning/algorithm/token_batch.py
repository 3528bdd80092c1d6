"""What the loss of one micro-batch is computed from, and the terms it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from grpo_lightning.algorithm.sampler_correction import SamplerWeights
from grpo_lightning.algorithm.segments import Segments


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch besides its current logprobs: T tokens of M whole completions, on the training device."""

    rows: Tensor
    """(T,) int64 in [0, M): the completion of each token."""
    mask: Tensor
    """(T,) bool: True where the policy chose the token and the completion counts (mask_truncated_completions)."""
    lengths: Tensor
    """(M,): tokens with a True mask, 0 for a completion that is masked as a whole."""
    advantages: Tensor
    """(M,) or (T,) floating point: of each completion, or of each token."""
    old_logprobs: Tensor | None = None
    """(T,) nats, of the weights that the rollouts were sampled with; None: those are the current weights."""
    ref_logprobs: Tensor | None = None
    """(T,) nats, of the reference; needed if beta is not 0."""
    sampling_logprobs: Tensor | None = None
    """(T,) nats, as the sampler gave them; NaN where it gave none. Needed for the sampler correction."""
    is_uncertain: Tensor | None = None
    """(T,) bool: tokens that the policy term trains; needed if top_entropy_quantile < 1."""
    is_marked: Tensor | None = None
    """(T,) bool: tokens that the loss has marked among all of the step's; needed if it marks any."""

    def __post_init__(self) -> None:
        for name in ("mask", "old_logprobs", "ref_logprobs", "sampling_logprobs", "is_uncertain", "is_marked"):
            values = getattr(self, name)
            if values is not None and values.shape != self.rows.shape:
                raise ValueError(f"{name} is {tuple(values.shape)}, but rows has {tuple(self.rows.shape)} tokens")
        if self.advantages.shape not in (self.lengths.shape, self.rows.shape):
            raise ValueError(
                f"advantages is {tuple(self.advantages.shape)}: neither one per completion, "
                f"{tuple(self.lengths.shape)}, nor one per token, {tuple(self.rows.shape)}"
            )

    @property
    def segments(self) -> Segments:
        """Which token belongs to which completion."""
        return Segments(self.rows, self.mask, self.lengths)

    @property
    def advantages_by_token(self) -> bool:
        """True where each token has an advantage of its own."""
        return self.advantages.shape != self.lengths.shape

    @property
    def token_advantages(self) -> Tensor:
        """``(T,)``: of each token."""
        return self.advantages if self.advantages_by_token else self.segments.spread(self.advantages)

    @property
    def completion_advantages(self) -> Tensor:
        """``(M,)``: of each completion; where tokens have their own, the mean of those that count."""
        return self.segments.mean(self.advantages) if self.advantages_by_token else self.advantages


@dataclass(frozen=True)
class LossInputs:
    """What a policy loss is a function of: T tokens of M completions. Values outside the mask are finite, often 0."""

    segments: Segments
    """Which token belongs to which completion, and which count: ``segments.sum``, ``mean``, ``spread``, ``mask``."""
    logprobs: Tensor
    """(T,) nats, current policy, 0 outside the mask; carries gradient."""
    old_logprobs: Tensor
    """(T,) nats, of the weights that start the step; no gradient."""
    ratio: Tensor
    """(T,) importance ratio at the level of model.importance_sampling_level; carries gradient."""
    level: str
    """That level: token, sequence or sequence_token."""
    advantages: Tensor
    """(T,)."""
    completion_advantages: Tensor
    """(M,): where tokens have advantages of their own, their mean."""
    sampling_logprobs: Tensor | None = None
    """(T,) nats of the sampler, 0 outside the mask and NaN where it gave none; None if nothing corrects for it."""
    sampler_weights: Tensor | None = None
    """(T,) sampler correction; None if it is off."""
    is_marked: Tensor | None = None
    """(T,) bool: what :meth:`PolicyLoss.mark` chose; None for losses that mark nothing."""

    @cached_property
    def log_ratio(self) -> Tensor:
        """``(T,)`` nats: current minus old logprobs; carries gradient."""
        return self.logprobs - self.old_logprobs


@dataclass(frozen=True)
class LossTerms:
    """Intermediate values of one micro-batch's loss: the objective combines them, the metrics describe them."""

    inputs: LossInputs
    """What the policy loss sees."""
    trained: Tensor
    """(T,) bool: tokens of the policy term; all of the mask, or those of high entropy."""
    kept: Tensor | None
    """(M,) bool: completions that are not too far off-policy; None without a threshold."""
    correction: SamplerWeights | None
    """Sampler correction W; None if it is off."""
    kl: Tensor | None
    """(T,) nats, ratio-corrected if so set; None without a reference. Carries gradient."""
