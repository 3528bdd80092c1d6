"""The GRPO objective: one set of settings, one loss for any micro-batch of whole completions."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from grpo_lightning.algorithm import objective_checks, objective_metrics
from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.choice import name_of
from grpo_lightning.algorithm.entropy import AdaptiveEntropyCoefficient
from grpo_lightning.algorithm.importance_ratio import importance_ratio
from grpo_lightning.algorithm.kl import KLEstimator, kl_estimator
from grpo_lightning.algorithm.losses import LossInputs, PolicyLoss, make_loss
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.objective_settings import ObjectiveSettings
from grpo_lightning.algorithm.off_policy_mask import off_policy_mask
from grpo_lightning.algorithm.sampler_correction import SamplerWeights, sampler_log_ratio, sampler_weights
from grpo_lightning.algorithm.token_batch import LossTerms, TokenBatch

LOSS_SETTINGS = (
    *("epsilon", "epsilon_high", "delta", "sapo_temperature_pos", "sapo_temperature_neg"),
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
)
"""TRL's settings of single losses, which are handed to the loss that has them."""


@dataclass(frozen=True)
class Objective(ObjectiveSettings):
    """The settings of the loss, and the loss itself.

    Raises:
        ValueError: For settings that cannot work together or that would have no effect.
    """

    policy_loss: PolicyLoss = field(init=False, repr=False)
    """The loss that loss_type and its settings name."""
    estimate_kl: KLEstimator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in LOSS_SETTINGS}
        objective_checks.check_ranges(self)
        object.__setattr__(self, "policy_loss", make_loss(self.loss_type, given, self.max_completion_length))
        object.__setattr__(self, "estimate_kl", kl_estimator(self.kl_estimator))
        objective_checks.check(self, self.policy_loss)
        self.policy_loss.check(self)

    def needs_old_logprobs_pass(self, num_updates: int) -> bool:
        """True if the rollouts' logprobs have to be computed before the ``num_updates`` optimizer steps on them.

        With a single update the old logprobs are the current ones, detached: no second forward, unless the loss chooses
        among the tokens of the step by them.
        """
        return num_updates > 1 or self.policy_loss.marks_tokens

    @property
    def trains_all_completions(self) -> bool:
        """True if a completion whose advantage is 0 has a gradient all the same."""
        return self.needs_reference or self.entropy_has_gradient or not self.policy_loss.needs_advantage

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
        tokens: TokenBatch,
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
        terms = self._terms(tokens, logprobs)
        per_token = self._policy_term(terms)
        if terms.kl is not None:
            per_token = per_token + self.beta * terms.kl
        lengths = tokens.lengths.to(per_token.dtype)
        weights = self.policy_loss.token_weights(lengths, totals)
        policy_loss = loss = (weights * tokens.segments.sum(per_token)).sum()
        if entropy is not None and self.entropy_has_gradient:
            coefficient = self.entropy_coef if entropy_coef is None else entropy_coef
            loss = policy_loss - coefficient * self._mean_entropy(terms, entropy, totals)
        metrics = objective_metrics.collect(self, self.policy_loss, tokens, terms, entropy)
        return loss, metrics + MetricSums(totals={"loss": loss.detach(), "policy_loss": policy_loss.detach()})

    def summarize(self, metrics: MetricSums) -> dict[str, float]:
        """Numbers for the log from metrics that were added up over micro-batches and ranks."""
        return objective_metrics.summarize(metrics)

    def _check_given(
        self, tokens: TokenBatch, entropy: Tensor | None, totals: StepTotals, entropy_coef: float | None
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
            "is_marked, which mark_tokens adds": (self.policy_loss.marks_tokens, tokens.is_marked),
            "totals.high_entropy_tokens for the entropy bonus": (bonus_on_some, totals.high_entropy_tokens),
            "entropy_coef from the controller of model.use_adaptive_entropy": (self.use_adaptive_entropy, entropy_coef),
        }
        for what, (is_needed, value) in needed.items():
            if is_needed and value is None:
                raise ValueError(f"the loss needs {what}; it got None")

    def _terms(self, tokens: TokenBatch, logprobs: Tensor) -> LossTerms:
        """Everything the loss combines. Values outside the mask are zeroed first, so that they reach no gradient."""
        segments = tokens.segments
        logprobs = segments.keep(logprobs)
        old_logprobs = logprobs.detach() if tokens.old_logprobs is None else segments.keep(tokens.old_logprobs)
        ratio = importance_ratio(logprobs - old_logprobs, segments, self.importance_sampling_level)
        correction = self._sampler_correction(tokens, old_logprobs)
        sampling = None if tokens.sampling_logprobs is None else segments.keep(tokens.sampling_logprobs)
        inputs = LossInputs(
            segments=segments,
            logprobs=logprobs,
            old_logprobs=old_logprobs,
            ratio=ratio,
            level=self.importance_sampling_level,
            advantages=tokens.token_advantages,
            completion_advantages=tokens.completion_advantages,
            sampling_logprobs=sampling if self.importance_sampling_correction else None,
            sampler_weights=None if correction is None else correction.per_token,
            is_marked=tokens.is_marked,
        )
        trained, kl, kept = segments.mask, None, None
        if self.needs_entropy_threshold and tokens.is_uncertain is not None:
            trained = tokens.is_uncertain & segments.mask
        if self.needs_reference and tokens.ref_logprobs is not None:
            kl = self.estimate_kl(logprobs, segments.keep(tokens.ref_logprobs))
            _check_per_token(kl, logprobs, f"model.kl_estimator={name_of(self.kl_estimator)!r} gave a KL")
            kl = kl * ratio if self.use_bias_correction_kl else kl
        if self.off_policy_mask_threshold is not None:
            # The sampler's own logprobs show both kinds of drift: from updates, and from the engine's arithmetic.
            behaviour = old_logprobs if sampling is None else sampling
            threshold = self.off_policy_mask_threshold
            kept = off_policy_mask(logprobs, behaviour, inputs.completion_advantages, segments, threshold)
        return LossTerms(inputs, trained, kept, correction, kl)

    def _sampler_correction(self, tokens: TokenBatch, old_logprobs: Tensor) -> SamplerWeights | None:
        is_used = self.importance_sampling_correction and self.policy_loss.sampler_correction != "none"
        if not is_used or tokens.sampling_logprobs is None:
            return None
        log_ratio = sampler_log_ratio(old_logprobs, tokens.sampling_logprobs, tokens.segments)
        bounds = self.importance_sampling_min, self.importance_sampling_max
        return sampler_weights(log_ratio, tokens.segments, self.importance_sampling_mode, *bounds)

    def _policy_term(self, terms: LossTerms) -> Tensor:
        """``(T,)``: the policy loss, then the off-policy mask, the entropy mask and the sampler correction."""
        per_token = self.policy_loss.per_token(terms.inputs)
        what = f"model.loss_type={self.policy_loss.name!r} gave a loss"
        _check_per_token(per_token, terms.inputs.logprobs, what)
        if terms.inputs.logprobs.requires_grad and not per_token.requires_grad:
            raise ValueError(
                f"{what} without a gradient, which nothing can be learnt from. Compute it from inputs.logprobs, inputs.log_ratio "
                "or inputs.ratio, which carry one."
            )
        if terms.kept is not None:
            per_token = per_token.masked_fill(~terms.inputs.segments.spread(terms.kept), 0.0)
        if self.needs_entropy_threshold:
            per_token = per_token.masked_fill(~terms.trained, 0.0)
        if terms.correction is not None and self.policy_loss.sampler_correction == "multiplied":
            per_token = per_token * terms.correction.per_token
        return per_token

    def _mean_entropy(self, terms: LossTerms, entropy: Tensor, totals: StepTotals) -> Tensor:
        """This micro-batch's share of the mean entropy over the step's trained tokens, whatever the loss's average."""
        count = totals.high_entropy_tokens if self.needs_entropy_threshold else totals.tokens
        assert count is not None  # _check_given
        divisor = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
        return entropy.masked_fill(~terms.trained, 0.0).sum() / divisor


def _check_per_token(values: Tensor, like: Tensor, what: str) -> None:
    """Refuses what would be broadcast over the tokens, from a loss or an estimator of a user's own."""
    if not isinstance(values, Tensor) or values.shape != like.shape:
        shape = (
            f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"that is a {type(values).__name__}"
        )
        raise ValueError(f"{what} {shape} for {like.numel()} tokens. Return one value per token, not yet averaged.")
