"""Metrics of the objective, under TRL's names where TRL has them, as sums over tokens or completions."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.algorithm.losses import PolicyLoss
from grpo_lightning.algorithm.metric_sums import MetricSums, maximum_over, mean_over, minimum_over
from grpo_lightning.algorithm.objective_settings import ObjectiveSettings
from grpo_lightning.algorithm.sampler_correction import effective_sample_size, sampler_log_ratio
from grpo_lightning.algorithm.token_batch import LossTerms, TokenBatch

SAMPLER_RATIO = "sampling/importance_sampling_ratio"
SAMPLER_SQUARE = "sampling/importance_sampling_ratio/mean_square"
TRAINED_ENTROPY = "entropy_of_trained_tokens"
"""What an adaptive entropy coefficient follows: mean entropy of the tokens that the bonus acts on."""


@torch.no_grad()
def collect(
    objective: ObjectiveSettings, loss: PolicyLoss, tokens: TokenBatch, terms: LossTerms, entropy: Tensor | None
) -> MetricSums:
    """Sums of everything the objective and its loss report. The names depend on the settings only, not on the values."""
    segments = tokens.segments
    means: dict[str, Tensor] = {}
    if terms.kl is not None:
        means["kl"] = mean_over(terms.kl, segments.mask)
    if entropy is not None:
        means["entropy"] = mean_over(segments.keep(entropy), segments.mask)
    if entropy is not None and objective.entropy_has_gradient:
        means[TRAINED_ENTROPY] = mean_over(segments.keep(entropy), terms.trained)
    if terms.kept is not None:
        means["off_policy_masked"] = mean_over((~terms.kept).to(terms.inputs.ratio.dtype), segments.lengths > 0)
    metrics = MetricSums(totals={"tokens": segments.lengths.sum().to(terms.inputs.ratio.dtype)}, means=means)
    metrics += loss.metrics(terms.inputs)
    metrics += _sampler_gap(tokens, terms)
    return metrics + _sampler_correction(objective, terms)


def summarize(metrics: MetricSums) -> dict[str, float]:
    """Numbers for the log; turns the mean square of the sampler correction into the effective sample size."""
    numbers = metrics.result()
    if SAMPLER_SQUARE in numbers:
        mean, square = numbers[f"{SAMPLER_RATIO}/mean"], numbers.pop(SAMPLER_SQUARE)
        numbers["sampling/effective_sample_size"] = effective_sample_size(mean, square)
    return numbers


def _sampler_gap(tokens: TokenBatch, terms: LossTerms) -> MetricSums:
    """Absolute difference between the trainer's and the sampler's logprobs of the same tokens, in nats."""
    if tokens.sampling_logprobs is None:
        return MetricSums()
    gap = sampler_log_ratio(terms.inputs.old_logprobs, tokens.sampling_logprobs, tokens.segments).abs()
    known = tokens.mask & ~tokens.sampling_logprobs.isnan()
    name = "sampling/sampling_logp_difference"
    unreported = (tokens.mask & tokens.sampling_logprobs.isnan()).sum().to(gap.dtype)
    return MetricSums(
        totals={"sampling/unreported_tokens": unreported},
        means={f"{name}/mean": mean_over(gap, known)},
        maxima={f"{name}/max": maximum_over(gap, known)},
    )


def _sampler_correction(objective: ObjectiveSettings, terms: LossTerms) -> MetricSums:
    correction = terms.correction
    if correction is None:
        return MetricSums()
    own, counted = correction.own, correction.counted
    action = "masked" if objective.importance_sampling_mode.endswith("mask") else "truncated"
    return MetricSums(
        means={
            f"{SAMPLER_RATIO}/mean": mean_over(own, counted),
            SAMPLER_SQUARE: mean_over(own.square(), counted),
            f"sampling/importance_sampling_{action}": mean_over(correction.bounded.to(own.dtype), counted),
        },
        minima={f"{SAMPLER_RATIO}/min": minimum_over(own, counted)},
        maxima={f"{SAMPLER_RATIO}/max": maximum_over(own, counted)},
    )
