"""The GRPO objective: one set of settings, one loss for any micro-batch of whole completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from grpo_lightning.algorithm import losses, objective_checks, objective_metrics
from grpo_lightning.algorithm.averaging import StepTotals, averaging_weights
from grpo_lightning.algorithm.entropy import AdaptiveEntropyCoefficient
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.sampler_correction import SamplerWeights, sampler_log_ratio, sampler_weights
from grpo_lightning.algorithm.token_batch import LossTerms, TrainTokens

__all__ = ["Objective", "StepTotals", "TrainTokens"]


@dataclass(frozen=True)
class Objective:
    """Settings of the loss, with TRL's names and defaults, and the loss itself.

    Raises:
        ValueError: For settings that cannot work together or that would have no effect.
    """

    loss_type: str = "dapo"
    """grpo, bnpo, dr_grpo, dapo, luspo (clipped surrogate, different averages), cispo, sapo or vespo."""
    beta: float = 0.0
    """Weight of the KL term to the reference; 0 means that there is no reference."""
    epsilon: float = 0.2
    """How far the ratio may fall below 1 before a bad token's gradient stops."""
    epsilon_high: float | None = None
    """The same above 1, for good tokens; None means epsilon. With cispo: the largest weight itself, about 5.0."""
    delta: float | None = None
    """Largest ratio in the unclipped term (two-sided clipping); None for no cap."""
    importance_sampling_level: str = "token"
    """token; sequence (GSPO); or sequence_token (GSPO's value with each token's own gradient)."""
    use_bias_correction_kl: bool = True
    """Multiplies the KL term by the importance ratio, so that its gradient is unbiased off-policy."""
    off_policy_mask_threshold: float | None = None
    """Drops completions with negative advantage whose mean drift from the sampler exceeds this, in nats per token."""
    top_entropy_quantile: float = 1.0
    """Share of tokens, by entropy, that the policy term trains; 1 for all."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus (mean entropy per token); where an adaptive coefficient starts."""
    use_adaptive_entropy: bool = False
    """Raises the coefficient while entropy is at or below entropy_target, lowers it above."""
    entropy_coef_min: float = 0.0
    """Lower bound of the adaptive coefficient."""
    entropy_coef_max: float = 1.0
    """Upper bound of the adaptive coefficient."""
    entropy_coef_delta: float = 0.005
    """Change of the adaptive coefficient per GRPO step."""
    entropy_target: float = 0.2
    """Nats per token."""
    sapo_temperature_pos: float = 1.0
    """Sharpness of SAPO's gate for tokens with positive advantage."""
    sapo_temperature_neg: float = 1.05
    """Sharpness of SAPO's gate for the others."""
    vespo_k_pos: float = 2.0
    """VESPO, advantage of 0 or more: how strongly completions that became less likely are faded."""
    vespo_lambda_pos: float = 3.0
    """VESPO, advantage of 0 or more: how strongly completions that became more likely are faded."""
    vespo_k_neg: float = 3.0
    """VESPO, negative advantage: as vespo_k_pos."""
    vespo_lambda_neg: float = 2.0
    """VESPO, negative advantage: as vespo_lambda_pos."""
    importance_sampling_correction: bool = True
    """Corrects for the sampler's probabilities differing from the trainer's (TRL: vllm_importance_sampling_*)."""
    importance_sampling_mode: str = "sequence_mask"
    """Level (token, sequence, geometric) and what happens outside the bounds (truncate, mask): token_truncate, ..."""
    importance_sampling_min: float | None = None
    """Lower bound of the correction; None for none."""
    importance_sampling_max: float | None = 3.0
    """Upper bound of the correction; None for none."""
    max_completion_length: int = 256
    """C, tokens; the constant divisor of dr_grpo."""

    def __post_init__(self) -> None:
        objective_checks.check(self)

    @property
    def upper_epsilon(self) -> float:
        """epsilon_high where it is set, else epsilon."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def needs_reference(self) -> bool:
        """True if ``TrainTokens.ref_logprobs`` is needed."""
        return self.beta != 0

    @property
    def entropy_has_gradient(self) -> bool:
        """True if the entropy passed to :meth:`loss` has to carry gradient (an entropy bonus is on)."""
        return self.entropy_coef != 0 or self.use_adaptive_entropy

    @property
    def needs_entropy_threshold(self) -> bool:
        """True if entropies of the whole optimizer step have to be known before its first loss."""
        return self.top_entropy_quantile < 1

    def needs_old_logprobs_pass(self, num_updates: int) -> bool:
        """True if the rollouts' logprobs have to be computed before the ``num_updates`` optimizer steps on them.

        With a single update the old logprobs are the current ones, detached: no second forward.
        """
        return num_updates > 1

    def entropy_controller(self) -> AdaptiveEntropyCoefficient | None:
        """A fresh controller if the coefficient is adaptive; its ``applied`` goes into :meth:`loss`."""
        if not self.use_adaptive_entropy:
            return None
        return AdaptiveEntropyCoefficient(
            self.entropy_coef,
            self.entropy_coef_min,
            self.entropy_coef_max,
            self.entropy_coef_delta,
            self.entropy_target,
        )

    def loss(
        self,
        tokens: TrainTokens,
        logprobs: Tensor,
        entropy: Tensor | None,
        totals: StepTotals,
        entropy_coef: float | None = None,
    ) -> tuple[Tensor, MetricSums]:
        """The micro-batch's share of the step's loss, and its metrics as sums.

        The shares of all micro-batches on all ranks add up to the loss of the step, so gradients have to be summed:
        under DDP, which takes the mean over ranks, multiply by the number of ranks.

        Args:
            tokens: The micro-batch.
            logprobs: ``(T,)`` nats, current policy; carries gradient.
            entropy: ``(T,)`` nats, current policy, or None; carries gradient if ``entropy_has_gradient``.
            totals: Of the whole optimizer step over all ranks.
            entropy_coef: The adaptive controller's ``applied``; None takes the setting.

        Raises:
            ValueError: If something is missing that the settings need.
        """
        self._check_given(tokens, entropy, totals, entropy_coef)
        terms = self._terms(tokens, logprobs, entropy)
        per_token = self._policy_term(tokens, terms)
        if terms.kl is not None:
            per_token = per_token + self.beta * terms.kl
        lengths = tokens.lengths.to(per_token.dtype)
        weights = averaging_weights(self.loss_type, lengths, totals, self.max_completion_length)
        policy_loss = loss = (weights * tokens.segments.sum(per_token)).sum()
        if entropy is not None and self.entropy_has_gradient:
            coefficient = self.entropy_coef if entropy_coef is None else entropy_coef
            loss = policy_loss - coefficient * self._mean_entropy(tokens, terms, entropy, totals)
        metrics = objective_metrics.collect(self, tokens, terms, entropy)
        return loss, metrics + MetricSums(totals={"loss": loss.detach(), "policy_loss": policy_loss.detach()})

    def summarize(self, metrics: MetricSums) -> dict[str, float]:
        """Numbers for the log from metrics that were added up over micro-batches and ranks."""
        return objective_metrics.summarize(metrics)

    def _check_given(
        self, tokens: TrainTokens, entropy: Tensor | None, totals: StepTotals, entropy_coef: float | None
    ) -> None:
        bonus_on_some = self.entropy_has_gradient and self.needs_entropy_threshold
        needed = {
            "ref_logprobs, because model.beta is not 0": (self.needs_reference, tokens.ref_logprobs),
            "sampling_logprobs for model.importance_sampling_correction": (
                self.importance_sampling_correction,
                tokens.sampling_logprobs,
            ),
            "the entropy for its bonus": (self.entropy_has_gradient, entropy),
            "is_uncertain for model.top_entropy_quantile": (self.needs_entropy_threshold, tokens.is_uncertain),
            "totals.high_entropy_tokens for the entropy bonus": (bonus_on_some, totals.high_entropy_tokens),
            "entropy_coef from the controller of model.use_adaptive_entropy": (self.use_adaptive_entropy, entropy_coef),
        }
        for what, (is_needed, value) in needed.items():
            if is_needed and value is None:
                raise ValueError(f"the loss needs {what}; it got None")

    def _terms(self, tokens: TrainTokens, logprobs: Tensor, entropy: Tensor | None) -> LossTerms:
        """Everything the loss combines. Values outside the mask are zeroed first, so that they reach no gradient."""
        segments = tokens.segments
        logprobs = segments.keep(logprobs)
        old_logprobs = logprobs.detach() if tokens.old_logprobs is None else segments.keep(tokens.old_logprobs)
        log_ratio = logprobs - old_logprobs
        ratio = losses.importance_ratio(log_ratio, segments, self.importance_sampling_level)
        correction = self._sampler_correction(tokens, old_logprobs)
        trained, kl, kept = segments.mask, None, None
        if self.needs_entropy_threshold and tokens.is_uncertain is not None:
            trained = tokens.is_uncertain & segments.mask
        if self.needs_reference and tokens.ref_logprobs is not None:
            kl_ratio = ratio if self.use_bias_correction_kl else None
            kl = losses.kl_k3(logprobs, segments.keep(tokens.ref_logprobs), kl_ratio)
        if self.off_policy_mask_threshold is not None:
            # The sampler's own logprobs show both kinds of drift: from updates, and from the engine's arithmetic.
            behaviour = old_logprobs if tokens.sampling_logprobs is None else segments.keep(tokens.sampling_logprobs)
            threshold = self.off_policy_mask_threshold
            kept = losses.off_policy_mask(logprobs, behaviour, tokens.advantages, segments, threshold)
        vespo_weight = self._vespo_weight(log_ratio, tokens, correction) if self.loss_type == "vespo" else None
        return LossTerms(logprobs, old_logprobs, ratio, trained, kept, correction, vespo_weight, kl)

    def _sampler_correction(self, tokens: TrainTokens, old_logprobs: Tensor) -> SamplerWeights | None:
        if not self.importance_sampling_correction or tokens.sampling_logprobs is None:
            return None
        log_ratio = sampler_log_ratio(old_logprobs, tokens.sampling_logprobs, tokens.segments)
        bounds = self.importance_sampling_min, self.importance_sampling_max
        return sampler_weights(log_ratio, tokens.segments, self.importance_sampling_mode, *bounds)

    def _vespo_weight(self, log_ratio: Tensor, tokens: TrainTokens, correction: SamplerWeights | None) -> Tensor:
        return losses.vespo_weight(
            log_ratio,
            tokens.advantages,
            tokens.segments,
            None if correction is None else correction.per_token,
            self.vespo_k_pos,
            self.vespo_lambda_pos,
            self.vespo_k_neg,
            self.vespo_lambda_neg,
        )

    def _policy_term(self, tokens: TrainTokens, terms: LossTerms) -> Tensor:
        """``(T,)``: the policy loss, then the off-policy mask, the entropy mask and the sampler correction."""
        spread = tokens.segments.spread
        per_token = self._policy_loss(terms, spread(tokens.advantages), spread)
        if terms.kept is not None:
            per_token = per_token.masked_fill(~spread(terms.kept), 0.0)
        if self.needs_entropy_threshold:
            per_token = per_token.masked_fill(~terms.trained, 0.0)
        if terms.correction is not None and self.loss_type != "vespo":  # VESPO has it inside its own weight
            per_token = per_token * terms.correction.per_token
        return per_token

    def _policy_loss(self, terms: LossTerms, advantages: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
        if terms.vespo_weight is not None:
            return losses.vespo_policy_loss(terms.logprobs, spread(terms.vespo_weight), advantages)
        if self.loss_type == "cispo":
            return losses.cispo_policy_loss(terms.logprobs, terms.ratio, advantages, self.upper_epsilon)
        if self.loss_type == "sapo":
            temperatures = self.sapo_temperature_pos, self.sapo_temperature_neg
            return losses.sapo_policy_loss(terms.ratio, advantages, *temperatures)
        return losses.clipped_policy_loss(terms.ratio, advantages, self.epsilon, self.upper_epsilon, self.delta)

    def _mean_entropy(self, tokens: TrainTokens, terms: LossTerms, entropy: Tensor, totals: StepTotals) -> Tensor:
        """This micro-batch's share of the mean entropy over the step's trained tokens, whatever the loss's average."""
        count = totals.high_entropy_tokens if self.needs_entropy_threshold else totals.tokens
        assert count is not None  # _check_given
        divisor = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
        return entropy.masked_fill(~terms.trained, 0.0).sum() / divisor
