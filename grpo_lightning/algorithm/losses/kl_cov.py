"""KL-Cov: the tokens that drive entropy down most are held near the old policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpo_lightning.algorithm.losses.base import PolicyLoss, refuse_level
from grpo_lightning.algorithm.losses.covariance import token_covariance
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings, check_above_zero, check_finite
from grpo_lightning.algorithm.token_batch import LossInputs


@dataclass(frozen=True)
class KLCovLoss(PolicyLoss):
    """``-r * A``, plus ``kl_cov_coef * |log r|`` for the tokens of highest covariance (KL-Cov, arXiv:2505.22617).

    They are chosen once per step over all ranks, by their logprobs at the weights that start it. While these are the
    current ones the penalty is 0 and has no gradient: it needs more than one update per step.

    Args:
        kl_cov_ratio: Share of the step's tokens that is held; at least one token.
        kl_cov_coef: Weight of the penalty.
    """

    marks_tokens: ClassVar[bool] = True
    kl_cov_ratio: float = 0.0002
    kl_cov_coef: float = 1.0

    def __post_init__(self) -> None:
        check_finite(self)
        check_above_zero(self, "kl_cov_ratio", "kl_cov_coef")

    def mark(self, advantages: Tensor, logprobs: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens to hold."""
        count = max(int(self.kl_cov_ratio * len(logprobs)), 1)
        highest = token_covariance(advantages, logprobs).topk(min(count, len(logprobs))).indices
        return torch.zeros(len(logprobs), dtype=torch.bool).index_fill(0, highest, True)

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The plain surrogate, with the penalty where a token is held."""
        assert inputs.is_marked is not None
        penalty = self.kl_cov_coef * inputs.log_ratio.abs().masked_fill(~inputs.is_marked, 0.0)
        return -inputs.advantages * inputs.ratio + penalty

    def check_updates(self, num_updates: int) -> None:
        """Refuses a single one, in which nothing has moved yet."""
        if num_updates == 1:
            raise ValueError(
                "model.loss_type='kl_cov' has no effect with one optimizer step per GRPO step: its penalty is on what has "
                "moved since the step began. Raise model.num_iterations or model.num_minibatches."
            )

    def check(self, settings: HasObjectiveSettings) -> None:
        """Refuses ratios of whole completions."""
        refuse_level(self, settings, "which holds single tokens")
