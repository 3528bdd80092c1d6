"""DPPO: a trust region of probabilities, not of ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithm.losses.base import PolicyLoss, refuse_level
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.algorithm.setting_checks import (
    HasObjectiveSettings,
    check_above_zero,
    check_finite,
    check_known,
    check_not_negative,
)
from grpo_lightning.algorithm.token_batch import LossInputs


@dataclass(frozen=True)
class DPPOLoss(PolicyLoss):
    """``-M * sg(min(r, max_weight)) * A * logprob``, averaged over all tokens of the step (DPPO, arXiv:2602.04879).

    M is 0 for a token whose probability has moved the way its advantage pushes it, by more than a bound. Ratio and
    bound are to the sampler's own probabilities; to those of the weights that start the step where the sampler gave none,
    or with ``model.importance_sampling_correction: false``.

    Args:
        divergence: What the bound is on: tv, the change of the token's probability; or kl, the divergence of "this token
            or another", in nats.
        epsilon: Bound for tokens that become less likely; the authors take 0.15 for tv and 0.05 for kl.
        epsilon_high: Bound for tokens that become more likely; None means epsilon.
        max_weight: Largest ratio; its gradient is dropped anyway.
    """

    known_as: ClassVar[str] = "dppo"
    sampler_correction: ClassVar[Literal["multiplied", "own", "none"]] = "none"
    needs_advantage: ClassVar[bool] = True
    divergence: str = "tv"
    epsilon: float = 0.15
    epsilon_high: float | None = None
    max_weight: float = 20.0

    def __post_init__(self) -> None:
        check_known(self, "divergence", ("tv", "kl"))
        check_finite(self)
        check_not_negative(self, "epsilon", "epsilon_high")
        check_above_zero(self, "max_weight")

    def behaviour_logprobs(self, inputs: LossInputs) -> Tensor:
        """``(T,)`` nats: of whoever drew the tokens, as far as it is known."""
        sampling = inputs.sampling_logprobs
        return inputs.old_logprobs if sampling is None else torch.where(sampling.isnan(), inputs.old_logprobs, sampling)

    @torch.no_grad()
    def is_outside(self, inputs: LossInputs) -> Tensor:
        """``(T,)`` bool: tokens that have left the trust region in the direction of their advantage."""
        logprobs, behaviour = inputs.logprobs, self.behaviour_logprobs(inputs)
        change = distance = logprobs.exp() - behaviour.exp()
        if self.divergence == "kl":
            rest, behaviour_rest = 1 - logprobs.exp() + 1e-8, 1 - behaviour.exp() + 1e-8
            distance = behaviour.exp() * (behaviour - logprobs) + (1 - behaviour.exp()) * (behaviour_rest / rest).log()
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        too_high, too_low = (distance.abs() > high) & (change > 0), (distance.abs() > self.epsilon) & (change < 0)
        return torch.where(inputs.advantages > 0, too_high, too_low)

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The weighted logprob inside the trust region."""
        drift = inputs.logprobs.detach() - self.behaviour_logprobs(inputs)
        weight = drift.clamp(max=20.0).exp().clamp(max=self.max_weight)
        return (-weight * inputs.advantages * inputs.logprobs).masked_fill(self.is_outside(inputs), 0.0)

    def metrics(self, inputs: LossInputs) -> MetricSums:
        """``dppo/outside``: the share of tokens outside the trust region."""
        outside = mean_over(self.is_outside(inputs).to(inputs.logprobs.dtype), inputs.segments.mask)
        return MetricSums(means={"dppo/outside": outside})

    def check(self, settings: HasObjectiveSettings) -> None:
        """Refuses ratios of whole completions."""
        refuse_level(self, settings, "which bounds the probability of each token")
