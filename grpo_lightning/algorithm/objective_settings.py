"""The settings of the GRPO objective, under the names and with the defaults of TRL's."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_lightning.algorithm.kl import KLEstimator
from grpo_lightning.algorithm.losses import LossSpec


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of the loss, with TRL's names and defaults; ``Objective`` checks them.

    Args:
        loss_type: grpo, bnpo, dr_grpo, dapo, luspo (clipped surrogate, different averages), cispo, sapo, vespo, gmpo,
            dppo, clip_cov or kl_cov; an import path; or class_path and init_args. docs/losses.md has their formulas.
        beta: Weight of the KL term to the reference; 0 means that there is no reference.
        kl_estimator: k1, k2 or k3, or the import path of a function from logprobs and ref_logprobs to the KL of each
            token.
        epsilon: How far the ratio may fall below 1 before a bad token's gradient stops: 0.2 unless the loss has another
            default (null). gmpo and dppo measure it otherwise.
        epsilon_high: The same above 1, for good tokens; null means epsilon. With cispo: the largest weight itself,
            about 5.0.
        delta: Largest ratio in the unclipped term (two-sided clipping); null for no cap.
        importance_sampling_level: token; sequence (GSPO); or sequence_token (GSPO's value with each token's own
            gradient).
        use_bias_correction_kl: Multiplies the KL term by the importance ratio, so that its gradient is unbiased off-
            policy.
        off_policy_mask_threshold: Drops completions with negative advantage whose mean drift from the sampler exceeds
            this, in nats per token.
        top_entropy_quantile: Share of tokens, by entropy at the weights that start the step, that the policy term
            trains; 1 for all.
        entropy_coef: Weight of the entropy bonus (mean entropy per token); where an adaptive coefficient starts.
        use_adaptive_entropy: Raises the coefficient while entropy is at or below entropy_target, lowers it above.
        entropy_coef_min: Lower bound of the adaptive coefficient.
        entropy_coef_max: Upper bound of the adaptive coefficient.
        entropy_coef_delta: Change of the adaptive coefficient per GRPO step.
        entropy_target: Nats per token.
        sapo_temperature_pos: Sharpness of SAPO's gate for tokens with positive advantage; null means 1.0.
        sapo_temperature_neg: Sharpness of SAPO's gate for the others; null means 1.05.
        vespo_k_pos: VESPO, advantage of 0 or more: how strongly completions that became less likely are faded; null
            means 2.0.
        vespo_lambda_pos: VESPO, advantage of 0 or more: how strongly completions that became more likely are faded;
            null means 3.0.
        vespo_k_neg: VESPO, negative advantage: as vespo_k_pos; null means 3.0.
        vespo_lambda_neg: VESPO, negative advantage: as vespo_lambda_pos; null means 2.0.
        importance_sampling_correction: Corrects for the sampler's probabilities differing from the trainer's (TRL:
            vllm_importance_sampling_*).
        importance_sampling_mode: Level (token, sequence, geometric) and what happens outside the bounds (truncate,
            mask): token_truncate, ...
        importance_sampling_min: Lower bound of the correction; None for none.
        importance_sampling_max: Upper bound of the correction; None for none.
        max_completion_length: C, tokens; the constant divisor of dr_grpo.
    """

    loss_type: LossSpec = "dapo"
    beta: float = 0.0
    kl_estimator: str | KLEstimator = "k3"
    epsilon: float | None = None
    epsilon_high: float | None = None
    delta: float | None = None
    importance_sampling_level: str = "token"
    use_bias_correction_kl: bool = True
    off_policy_mask_threshold: float | None = None
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0
    use_adaptive_entropy: bool = False
    entropy_coef_min: float = 0.0
    entropy_coef_max: float = 1.0
    entropy_coef_delta: float = 0.005
    entropy_target: float = 0.2
    sapo_temperature_pos: float | None = None
    sapo_temperature_neg: float | None = None
    vespo_k_pos: float | None = None
    vespo_lambda_pos: float | None = None
    vespo_k_neg: float | None = None
    vespo_lambda_neg: float | None = None
    importance_sampling_correction: bool = True
    importance_sampling_mode: str = "sequence_mask"
    importance_sampling_min: float | None = None
    importance_sampling_max: float | None = 3.0
    max_completion_length: int = 256

    @property
    def needs_reference(self) -> bool:
        """True if ``TokenBatch.ref_logprobs`` is needed."""
        return self.beta != 0

    @property
    def entropy_has_gradient(self) -> bool:
        """True if the entropy passed to :meth:`loss` has to carry gradient (an entropy bonus is on)."""
        return self.entropy_coef != 0 or self.use_adaptive_entropy

    @property
    def needs_entropy_threshold(self) -> bool:
        """True if entropies of the whole optimizer step have to be known before its first loss."""
        return self.top_entropy_quantile < 1
