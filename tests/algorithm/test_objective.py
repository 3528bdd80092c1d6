"""The objective: settings it refuses, a loss by hand, and what must not reach the gradient."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.algorithm.token_batch import TokenBatch

NAN = math.nan


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens_of(**changes: Any) -> TokenBatch:
    """Completion 0: two tokens, then one of a tool. Completion 1: one token. Completion 2: masked as a whole."""
    tokens = TokenBatch(
        rows=torch.tensor([0, 0, 0, 1, 2]),
        mask=torch.tensor([True, True, False, True, False]),
        lengths=torch.tensor([2, 1, 0]),
        advantages=f64(1.0, -2.0, 5.0),
        old_logprobs=f64(0.5, 0.5, NAN, 0.2, NAN).log(),
    )
    return replace(tokens, **changes)


TOTALS = StepTotals(completions=3, tokens=3)


def current() -> Tensor:
    return f64(0.75, 0.45, NAN, 0.25, NAN).log().requires_grad_()  # ratios 1.5, 0.9, 1.25


def plain(**settings: Any) -> Objective:
    return Objective(importance_sampling_correction=False, **settings)


def test_grpo_loss_by_hand_with_tool_tokens_and_a_masked_completion_full_of_nan():
    logprobs = current()
    loss, metrics = plain(loss_type="grpo").loss(tokens_of(), logprobs, None, TOTALS)
    # tokens: -min(1.5, 1.2), -0.9 | 2 * 1.25; completion means -1.05 and 2.5, of three completions
    assert loss.item() == pytest.approx((-1.05 + 2.5) / 3)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, f64(0.0, -0.9 / 6, 0.0, 2.5 / 3, 0.0))
    numbers = plain().summarize(metrics)
    assert numbers["clip_ratio/high_mean"] == pytest.approx(1 / 3)
    assert numbers["clip_ratio/high_max"] == pytest.approx(1 / 2)
    assert numbers["clip_ratio/low_mean"] == 0.0
    assert numbers["tokens"] == 3


@pytest.mark.parametrize(
    ("loss_type", "divide"),
    [
        ("dapo", lambda first, second: (first + second) / 3),
        ("bnpo", lambda first, second: (first + second) / 3),
        ("dr_grpo", lambda first, second: (first + second) / (3 * 8)),
    ],
)
def test_token_averages_divide_by_the_tokens_of_the_step_or_by_a_constant(loss_type: str, divide: Any):
    loss, _ = plain(loss_type=loss_type, max_completion_length=8).loss(tokens_of(), current(), None, TOTALS)
    assert loss.item() == pytest.approx(divide(-1.2 - 0.9, 2.5))


def test_the_averages_use_the_totals_of_the_step_and_not_those_of_the_microbatch():
    once, _ = plain().loss(tokens_of(), current(), None, TOTALS)
    step, _ = plain().loss(tokens_of(), current(), None, StepTotals(completions=30, tokens=30))
    assert step.item() == pytest.approx(once.item() / 10)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "sapo"])
def test_without_old_logprobs_the_ratio_is_one_and_the_gradient_is_the_policy_gradient(loss_type: str):
    logprobs = current()
    loss, metrics = plain(loss_type=loss_type).loss(tokens_of(old_logprobs=None), logprobs, None, TOTALS)
    loss.backward()
    weight = f64(1 / 3, 1 / 3, 0, 1 / 3, 0) if loss_type == "dapo" else f64(1 / 6, 1 / 6, 0, 1 / 3, 0)
    torch.testing.assert_close(logprobs.grad, -weight * f64(1.0, 1.0, 0.0, -2.0, 0.0))
    assert metrics.result().get("clip_ratio/region_mean", 0.0) == 0.0


def test_the_sampler_correction_does_not_multiply_the_kl():
    settings = {"beta": 0.5, "use_bias_correction_kl": False, "importance_sampling_mode": "token_truncate"}
    tokens = tokens_of(
        old_logprobs=None,
        advantages=f64(0.0, 0.0, 0.0),
        ref_logprobs=f64(0.75, 0.9, NAN, 0.25, NAN).log(),
        sampling_logprobs=f64(0.25, 0.25, NAN, 0.25, NAN).log(),
    )
    logprobs = current()
    loss, metrics = Objective(loss_type="dapo", **settings).loss(tokens, logprobs, None, TOTALS)
    kl = 2.0 - math.log(2.0) - 1.0
    assert loss.item() == pytest.approx(0.5 * kl / 3)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, f64(0.0, 0.5 * -1.0 / 3, 0.0, 0.0, 0.0))
    assert metrics.result()["kl"] == pytest.approx(kl / 3)


def test_nan_at_a_tools_token_does_not_reach_the_others_through_the_ratio_that_they_share():
    logprobs, ref = current(), f64(0.75, 0.9, NAN, 0.25, NAN).log()
    objective = plain(loss_type="grpo", beta=0.5, importance_sampling_level="sequence")
    loss, _ = objective.loss(tokens_of(ref_logprobs=ref), logprobs, None, TOTALS)
    loss.backward()
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[[2, 4]].tolist() == [0.0, 0.0]


def test_sampler_metrics_count_known_tokens_and_give_the_effective_sample_size():
    objective = Objective(importance_sampling_mode="token_mask", importance_sampling_max=2.5)
    tokens = tokens_of(
        old_logprobs=f64(0.6, 0.9, NAN, 0.5, NAN).log(), sampling_logprobs=f64(0.3, 0.1, NAN, NAN, 0.5).log()
    )  # ratios 2, 9 (masked), 1 (unknown to the sampler)
    _, metrics = objective.loss(tokens, current(), None, TOTALS)
    numbers = objective.summarize(metrics)
    assert numbers["sampling/importance_sampling_ratio/mean"] == pytest.approx((2 + 0 + 1) / 3)
    assert numbers["sampling/importance_sampling_ratio/min"] == 0.0
    assert numbers["sampling/importance_sampling_ratio/max"] == pytest.approx(2.0)
    assert numbers["sampling/importance_sampling_masked"] == pytest.approx(1 / 3)
    assert numbers["sampling/effective_sample_size"] == pytest.approx((2 + 1) ** 2 / (3 * (4 + 1)))
    assert numbers["sampling/sampling_logp_difference/mean"] == pytest.approx((math.log(2) + math.log(9)) / 2)
    assert numbers["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(9))


def test_sequence_corrections_are_reported_per_completion():
    objective = Objective(importance_sampling_mode="geometric_truncate", importance_sampling_max=2.0)
    sampling = f64(0.1, 0.1, NAN, 0.2, NAN).log()  # geometric means 5 and 1
    _, metrics = objective.loss(tokens_of(sampling_logprobs=sampling), current(), None, TOTALS)
    numbers = objective.summarize(metrics)
    assert numbers["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.5)
    assert numbers["sampling/importance_sampling_truncated"] == pytest.approx(0.5)


def test_the_entropy_bonus_is_the_mean_entropy_of_the_step_whatever_the_average():
    entropy = f64(1.0, 2.0, NAN, 6.0, NAN).requires_grad_()
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        base, _ = plain(loss_type=loss_type).loss(tokens_of(), current(), entropy, TOTALS)
        loss, _ = plain(loss_type=loss_type, entropy_coef=0.1).loss(tokens_of(), current(), entropy, TOTALS)
        assert (base - loss).item() == pytest.approx(0.1 * 3.0)
    loss.backward()
    torch.testing.assert_close(entropy.grad, f64(-0.1 / 3, -0.1 / 3, 0.0, -0.1 / 3, 0.0))


def test_top_entropy_quantile_trains_the_tokens_that_were_uncertain_as_the_step_started():
    logprobs, entropy = current(), f64(9.0, 0.0, 9.0, 9.0, 9.0)  # it has moved since
    uncertain = torch.tensor([False, True, True, False, True])
    tokens = tokens_of(old_logprobs=None, is_uncertain=uncertain)
    loss, _ = plain(top_entropy_quantile=0.3).loss(tokens, logprobs, entropy, TOTALS)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, f64(0.0, -1 / 3, 0.0, 0.0, 0.0))


def test_a_microbatch_that_is_empty_or_masked_as_a_whole_gives_a_differentiable_zero():
    for size in (0, 2):
        logprobs = torch.full((size,), -1.0, requires_grad=True)
        tokens = TokenBatch(
            rows=torch.zeros(size, dtype=torch.int64),
            mask=torch.zeros(size, dtype=torch.bool),
            lengths=torch.zeros(min(size, 1)),
            advantages=torch.ones(min(size, 1)),
        )
        loss, metrics = plain(loss_type="grpo").loss(tokens, logprobs, None, TOTALS)
        loss.backward()
        assert loss.item() == 0.0
        assert logprobs.grad is not None and logprobs.grad.eq(0).all()
        assert metrics.result() == {"loss": 0.0, "policy_loss": 0.0, "tokens": 0.0}


def test_gspo_counts_clipped_completions_and_gspo_token_has_the_same_loss():
    settings = {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.1}
    whole, metrics = plain(importance_sampling_level="sequence", **settings).loss(tokens_of(), current(), None, TOTALS)
    token, _ = plain(importance_sampling_level="sequence_token", **settings).loss(tokens_of(), current(), None, TOTALS)
    assert whole.item() == pytest.approx((-1.1 + 2 * 1.25) / 3)  # completion 0 has ratio sqrt(1.35), clipped at 1.1
    assert token.item() == pytest.approx(whole.item())
    assert metrics.result()["clip_ratio/high_mean"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "ppo"}, "model.loss_type='ppo' is unknown. Choose one of grpo, bnpo"),
        ({"importance_sampling_level": "word"}, "model.importance_sampling_level='word' is unknown"),
        ({"importance_sampling_mode": "token_clip"}, "model.importance_sampling_mode='token_clip' is unknown"),
        ({"loss_type": "cispo"}, "model.epsilon_high=None cannot be left out with model.loss_type='cispo'"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 4.0}, "model.delta=4.0 has no effect with"),
        ({"sapo_temperature_pos": 2.0}, "model.sapo_temperature_pos=2.0 has no effect with model.loss_type='dapo'"),
        ({"loss_type": "sapo", "epsilon": 0.1}, "model.epsilon=0.1 has no effect with model.loss_type='sapo'"),
        ({"vespo_k_neg": 1.0}, "model.vespo_k_neg=1.0 has no effect"),
        ({"loss_type": "vespo"}, "model.importance_sampling_mode='sequence_mask' gives one weight per completion"),
        ({"use_bias_correction_kl": False}, "model.use_bias_correction_kl=False has no effect with model.beta=0"),
        ({"entropy_target": 1.0}, "model.entropy_target=1.0 has no effect without model.use_adaptive_entropy=true"),
        ({"use_adaptive_entropy": True, "entropy_coef": 2.0}, "model.entropy_coef=2.0 is where the adaptive"),
        ({"use_adaptive_entropy": True, "entropy_coef_min": 1.0}, "model.entropy_coef_min=1.0 has to be below"),
        ({"importance_sampling_min": 3.0}, "model.importance_sampling_min=3.0 has to be below"),
        (
            {"importance_sampling_mode": "token_truncate", "importance_sampling_max": None},
            "model.importance_sampling_mode='token_truncate' has nothing to truncate at",
        ),
        (
            {"importance_sampling_correction": False, "importance_sampling_max": 2.0},
            "model.importance_sampling_max=2.0 has no effect with model.importance_sampling_correction=false",
        ),
        ({"top_entropy_quantile": 1.5}, "model.top_entropy_quantile=1.5 is a share"),
        ({"epsilon": -0.1}, "model.epsilon=-0.1 is negative"),
        ({"beta": NAN}, "model.beta=nan is not a finite number"),
        ({"max_completion_length": 0}, "model.max_completion_length=0 has to be above 0"),
    ],
)
def test_settings_that_cannot_work_or_have_no_effect_are_refused_in_the_words_of_the_config(
    settings: dict[str, Any], message: str
):
    with pytest.raises(ValueError) as error:
        Objective(**settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("loss_type", ["bnpo", "dr_grpo", "dapo", "cispo"])
def test_sequence_ratios_with_a_token_average_are_warned_about(loss_type: str):
    said = f"loss_type='{loss_type}': this loss sums over tokens, so each completion counts by its length"
    with pytest.warns(UserWarning, match=said) as warned:
        Objective(
            loss_type=loss_type,
            importance_sampling_level="sequence",
            epsilon_high=5.0 if loss_type == "cispo" else None,
        )
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "dapo"),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, "grpo"),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, "luspo"),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, "cispo"),
        ({"epsilon_high": 0.28, "delta": 4.0}, "dapo"),
        ({"loss_type": "vespo", "importance_sampling_mode": "token_truncate"}, "vespo"),
    ],
)
def test_defaults_and_the_papers_setups_pass_without_a_warning(settings: dict[str, Any], name: str):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        objective = Objective(**settings)
    assert [str(warning.message) for warning in warned] == []
    assert objective.policy_loss.name == name


def test_the_objective_says_what_it_needs():
    default = Objective()
    assert not default.needs_reference and not default.entropy_has_gradient
    assert not default.needs_old_logprobs_pass(1) and default.needs_old_logprobs_pass(2)
    assert Objective(beta=0.1).needs_reference
    assert Objective(entropy_coef=0.1).entropy_has_gradient
    assert Objective(use_adaptive_entropy=True).entropy_has_gradient
    quantile = Objective(top_entropy_quantile=0.2)
    assert quantile.needs_entropy_threshold and not quantile.entropy_has_gradient


@pytest.mark.parametrize(
    ("objective", "missing"),
    [
        (plain(beta=0.1), "the loss needs ref_logprobs"),
        (Objective(), "the loss needs sampling_logprobs"),
        (plain(entropy_coef=0.1), "the loss needs the entropy"),
        (plain(top_entropy_quantile=0.5), "the loss needs is_uncertain"),
        (plain(use_adaptive_entropy=True), "the loss needs the entropy"),
    ],
)
def test_a_missing_tensor_is_named(objective: Objective, missing: str):
    with pytest.raises(ValueError, match=missing):
        objective.loss(tokens_of(), current(), None, TOTALS)


def test_tensors_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"old_logprobs is \(2,\), but rows has \(5,\) tokens"):
        tokens_of(old_logprobs=f64(0.1, 0.2))
