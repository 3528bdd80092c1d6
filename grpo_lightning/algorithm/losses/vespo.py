"""VESPO: whole completions weighed by a Gamma shape of their unnormalised ratio."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithm.losses.base import PolicyLoss
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.algorithm.segments import Segments
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings, check_finite, refusal
from grpo_lightning.algorithm.token_batch import LossInputs

LOWEST_LOG_WEIGHT = math.log(1e-8)
HIGHEST_LOG_WEIGHT = 20.0


@torch.no_grad()
def vespo_weight(
    log_ratio: Tensor,
    advantages: Tensor,
    segments: Segments,
    sampler_weight: Tensor | None,
    k_pos: float,
    lambda_pos: float,
    k_neg: float,
    lambda_neg: float,
) -> Tensor:
    """``(M,)``: ``phi(w) = exp(lambda) * w**k * exp(-lambda * w)``, with ``phi(1) = 1`` (VESPO, arXiv:2602.10693).

    ``w`` is the ratio of the whole completion, not normalised by its length, times the sampler correction.

    Args:
        log_ratio: ``(T,)`` nats.
        advantages: ``(M,)``, one per completion; its sign chooses k and lambda (0 counts as positive).
        segments: Tells the completions apart.
        sampler_weight: ``(T,)`` weights old / sampler at token level, or None.
        k_pos, lambda_pos, k_neg, lambda_neg: Shape of the Gamma weight: k fades ``w < 1``, lambda fades ``w > 1``.
    """
    log_weight = segments.sum(log_ratio.clamp(-20.0, 20.0))
    if sampler_weight is not None:
        log_weight = log_weight + segments.sum(sampler_weight.log().clamp(LOWEST_LOG_WEIGHT, HIGHEST_LOG_WEIGHT))
    log_weight = log_weight.clamp(LOWEST_LOG_WEIGHT, HIGHEST_LOG_WEIGHT)
    good = advantages >= 0
    k = torch.full_like(advantages, k_neg).masked_fill(good, k_pos)
    lam = torch.full_like(advantages, lambda_neg).masked_fill(good, lambda_pos)
    return torch.exp(lam + k * log_weight - lam * log_weight.exp())


def vespo_policy_loss(logprobs: Tensor, weight: Tensor, advantages: Tensor) -> Tensor:
    """``-sg(phi) * A * logprob`` (VESPO, arXiv:2602.10693).

    Args:
        logprobs: ``(T,)`` nats; the only argument that carries gradient.
        weight: ``(T,)``: :func:`vespo_weight`, spread over the tokens.
        advantages: ``(T,)``.
    """
    return -weight.detach() * advantages * logprobs


@dataclass(frozen=True)
class VESPOLoss(PolicyLoss):
    """VESPO (arXiv:2602.10693), averaged over all tokens of the step.

    Args:
        vespo_k_pos: Advantage of 0 or more: how strongly completions that became less likely are faded.
        vespo_lambda_pos: Advantage of 0 or more: how strongly completions that became more likely are faded.
        vespo_k_neg: Negative advantage: as vespo_k_pos.
        vespo_lambda_neg: Negative advantage: as vespo_lambda_pos.
    """

    known_as: ClassVar[str] = "vespo"
    sampler_correction: ClassVar[Literal["multiplied", "own", "none"]] = "own"
    needs_advantage: ClassVar[bool] = True
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0

    def __post_init__(self) -> None:
        check_finite(self)
        for name in ("vespo_lambda_pos", "vespo_lambda_neg"):
            if getattr(self, name) < 1e-4:
                raise refusal(self, name, "lets the weight of a completion grow without bound. Choose 1e-4 or more.")

    def completion_weight(self, inputs: LossInputs) -> Tensor:
        """``(M,)``: phi of each completion, no gradient."""
        shape = self.vespo_k_pos, self.vespo_lambda_pos, self.vespo_k_neg, self.vespo_lambda_neg
        advantages, weights = inputs.completion_advantages, inputs.sampler_weights
        return vespo_weight(inputs.log_ratio, advantages, inputs.segments, weights, *shape)

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The weighted logprob."""
        weight = inputs.segments.spread(self.completion_weight(inputs))
        return vespo_policy_loss(inputs.logprobs, weight, inputs.advantages)

    def metrics(self, inputs: LossInputs) -> MetricSums:
        """``vespo/phi_seq_mean``: the mean weight of a completion."""
        weight = mean_over(self.completion_weight(inputs), inputs.segments.lengths > 0)
        return MetricSums(means={"vespo/phi_seq_mean": weight})

    def check(self, settings: HasObjectiveSettings) -> None:
        """Refuses sampler corrections of a whole completion; warns of an importance level that only the KL sees."""
        mode = settings.importance_sampling_mode
        if settings.importance_sampling_correction and not mode.startswith("token"):
            why = "gives one weight per completion, but model.loss_type='vespo' multiplies the weights of the tokens "
            why += "itself. Choose token_truncate or token_mask, or set model.importance_sampling_correction=false."
            raise refusal(settings, "importance_sampling_mode", why)
        if settings.importance_sampling_level != "token":
            warnings.warn(
                f"model.importance_sampling_level={settings.importance_sampling_level!r} with model.loss_type='vespo' "
                "changes the KL term only: VESPO weighs whole completions by itself. Leave it at 'token'.",
                stacklevel=5,
            )
