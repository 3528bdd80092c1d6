"""Per-token losses by hand: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from grpo_lightning.algorithm import importance_ratio, kl
from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.entropy import AdaptiveEntropyCoefficient, entropy_threshold, high_entropy_mask
from grpo_lightning.algorithm.losses import cispo, clipped, make_loss, sapo, vespo
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.off_policy_mask import off_policy_mask
from grpo_lightning.algorithm.sampler_correction import sampler_log_ratio, sampler_weights
from grpo_lightning.algorithm.segments import Segments

NAN = math.nan


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def leaf(*values: float) -> Tensor:
    return f64(*values).requires_grad_()


def three_and_two() -> Segments:
    """Completion 0 has three tokens, the last of them a tool's; completion 1 has two; completion 2 is masked."""
    rows = torch.tensor([0, 0, 0, 1, 1, 2])
    mask = torch.tensor([True, True, False, True, True, False])
    return Segments.of(rows, mask, completions=3)


def check(loss: Tensor, wanted: Tensor, argument: Tensor, wanted_gradient: Tensor) -> None:
    torch.testing.assert_close(loss.detach(), wanted)
    loss.sum().backward()
    torch.testing.assert_close(argument.grad, wanted_gradient)


def test_segments_sum_and_average_masked_tokens_only_and_give_zero_for_an_empty_completion():
    values = leaf(1.0, 3.0, NAN, 10.0, 20.0, math.inf)
    segments = three_and_two()
    torch.testing.assert_close(segments.sum(values).detach(), f64(4.0, 30.0, 0.0))
    check(segments.mean(values), f64(2.0, 15.0, 0.0), values, f64(0.5, 0.5, 0.0, 0.5, 0.5, 0.0))
    assert segments.lengths.tolist() == [2, 2, 0]


def test_segments_allow_the_tokens_of_completions_to_be_interleaved():
    segments = Segments.of(torch.tensor([1, 0, 1, 0]), torch.ones(4, dtype=torch.bool), completions=2)
    torch.testing.assert_close(segments.sum(f64(1.0, 10.0, 2.0, 20.0)), f64(30.0, 3.0))


def test_token_ratio_has_its_own_value_as_gradient():
    log_ratio = leaf(math.log(2.0), math.log(0.5))
    check(importance_ratio.token_ratio(log_ratio), f64(2.0, 0.5), log_ratio, f64(2.0, 0.5))


def test_sequence_ratio_is_the_geometric_mean_and_its_gradient_is_shared_by_the_tokens():
    log_ratio = leaf(math.log(2.0), math.log(8.0), 99.0, 0.0, 0.0, 99.0)
    ratio = importance_ratio.sequence_ratio(log_ratio, three_and_two())
    torch.testing.assert_close(ratio.detach(), f64(4.0, 4.0, 4.0, 1.0, 1.0, 1.0))
    ratio[0].backward()  # d exp(mean) / d token = 4 / 2 for either token of completion 0
    torch.testing.assert_close(log_ratio.grad, f64(2.0, 2.0, 0.0, 0.0, 0.0, 0.0))


def test_sequence_token_ratio_has_the_sequence_value_and_the_gradient_of_the_token_alone():
    log_ratio = leaf(math.log(2.0), math.log(8.0), 99.0, 0.0, 0.0, 99.0)
    ratio = importance_ratio.sequence_token_ratio(log_ratio, three_and_two())
    torch.testing.assert_close(ratio.detach()[:2], f64(4.0, 4.0))
    ratio[0].backward()
    torch.testing.assert_close(log_ratio.grad, f64(4.0, 0.0, 0.0, 0.0, 0.0, 0.0))


def test_an_unknown_importance_level_is_refused():
    with pytest.raises(ValueError, match="importance level 'word' is unknown"):
        importance_ratio.importance_ratio(f64(0.0), three_and_two(), "word")


def test_clipped_loss_stops_good_tokens_above_and_bad_tokens_below_the_clip():
    ratio = leaf(1.5, 0.5, 1.5, 0.5, 1.1)
    advantages = f64(2.0, 2.0, -2.0, -2.0, 2.0)
    loss = clipped.clipped_policy_loss(ratio, advantages, epsilon=0.2, epsilon_high=0.3)
    check(loss, f64(-2.6, -1.0, 3.0, 1.6, -2.2), ratio, f64(0.0, -2.0, 2.0, 0.0, -2.0))


def test_delta_bounds_the_loss_of_a_bad_token_that_became_likely():
    ratio = leaf(9.0, 3.0, 9.0)
    loss = clipped.clipped_policy_loss(ratio, f64(-1.0, -1.0, 1.0), epsilon=0.2, epsilon_high=0.2, delta=4.0)
    check(loss, f64(4.0, 3.0, -1.2), ratio, f64(0.0, 1.0, 0.0))


def test_cispo_clips_the_weight_and_keeps_the_gradient_of_every_token():
    old = f64(0.2, 0.4, 0.1).log()
    logprobs = leaf(*f64(0.6, 0.2, 0.8).log().tolist())  # ratios 3, 0.5, 8
    ratio = torch.exp(logprobs - old)
    loss = cispo.cispo_policy_loss(logprobs, ratio, f64(1.0, -2.0, 1.0), epsilon_high=5.0)
    wanted = f64(-3.0 * math.log(0.6), 0.5 * 2.0 * math.log(0.2), -5.0 * math.log(0.8))
    check(loss, wanted, logprobs, f64(-3.0, 1.0, -5.0))  # the weight itself has no gradient


def test_sapo_has_the_slope_of_the_plain_surrogate_on_policy_and_its_own_temperature_by_sign():
    ratio = leaf(1.0, 1.0, 1.5)
    loss = sapo.sapo_policy_loss(ratio, f64(2.0, -3.0, 1.0), temperature_pos=1.0, temperature_neg=2.0)
    gate = 1 / (1 + math.exp(-0.5))
    wanted = f64(-4.0 * 0.5 * 2.0, 2.0 * 0.5 * 3.0, -4.0 * gate)
    check(loss, wanted, ratio, f64(-2.0, 3.0, -4.0 * gate * (1 - gate)))


def vespo_weight(log_ratio: Tensor, advantages: Tensor, sampler_weight: Tensor | None = None) -> Tensor:
    return vespo.vespo_weight(log_ratio, advantages, three_and_two(), sampler_weight, 2.0, 3.0, 3.0, 2.0)


def test_vespo_weight_is_one_on_policy_and_a_gamma_shape_of_the_unnormalised_ratio_elsewhere():
    log_ratio = f64(math.log(0.5), math.log(0.5), 50.0, math.log(2.0), 0.0, 50.0)  # w: 0.25, 2, 1 (no token)
    phi = vespo_weight(log_ratio, f64(1.0, -1.0, 0.0))
    torch.testing.assert_close(phi, f64(math.exp(3.0 - 0.75) * 0.25**2, math.exp(2.0 - 4.0) * 2.0**3, 1.0))


def test_vespo_weight_includes_the_sampler_correction_of_masked_tokens_only():
    sampler_weight = f64(0.5, 0.5, 7.0, 2.0, 1.0, 7.0)
    phi = vespo_weight(torch.zeros(6, dtype=torch.float64), f64(1.0, -1.0, 0.0), sampler_weight)
    torch.testing.assert_close(phi, f64(math.exp(3.0 - 0.75) * 0.25**2, math.exp(2.0 - 4.0) * 2.0**3, 1.0))


def test_vespo_loss_passes_gradient_through_the_logprob_only():
    logprobs = leaf(-1.0, -2.0)
    weight = (logprobs * 0.0 + 0.5).detach().requires_grad_()
    check(vespo.vespo_policy_loss(logprobs, weight, f64(1.0, -4.0)), f64(0.5, -4.0), logprobs, f64(-0.5, 2.0))
    assert weight.grad is None


def test_kl_is_zero_at_the_reference_positive_elsewhere_and_pulls_towards_it():
    logprobs = leaf(math.log(0.5), math.log(0.25), math.log(0.5))
    ref = f64(0.5, 0.5, 0.25).log()
    wanted = f64(0.0, 2.0 - math.log(2.0) - 1.0, 0.5 + math.log(2.0) - 1.0)
    check(kl.k3(logprobs, ref), wanted, logprobs, f64(0.0, -1.0, 0.5))  # gradient is 1 - exp(ref - logprob)


def test_bias_corrected_kl_has_the_gradient_of_the_reverse_kl_even_where_the_ratio_is_one():
    logprobs = leaf(math.log(0.25))
    ratio = torch.exp(logprobs - logprobs.detach())
    reverse = math.log(0.25 / 0.5)  # d/dlp [ratio * k3] = k3 + (1 - exp(q)) = lp - ref: the reverse-KL integrand
    check(kl.k3(logprobs, f64(math.log(0.5))) * ratio, f64(1.0 - math.log(2.0)), logprobs, f64(reverse))


def test_off_policy_mask_drops_bad_completions_that_drifted_and_ignores_what_is_masked():
    segments = Segments.of(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 1, 1, 0, 1, 1]).bool(), completions=3)
    logprobs = f64(-2.0, -2.0, -2.0, -500.0, -2.0, -2.0)
    behaviour = f64(-1.0, -1.0, -2.0, -1.0, -1.0, NAN)  # mean drifts 1.0, 0.0, 0.5 (NaN is no evidence)

    def keep(advantages: Tensor, threshold: float) -> list[bool]:
        return off_policy_mask(logprobs, behaviour, advantages, segments, threshold).tolist()

    assert keep(f64(-1.0, -1.0, -1.0), 0.5) == [False, True, True]
    assert keep(f64(-1.0, -1.0, -1.0), 0.4) == [False, True, False]
    assert keep(f64(0.0, -1.0, 1.0), 0.4) == [True, True, True]


@pytest.mark.parametrize(
    ("loss_type", "wanted"),
    [
        ("grpo", (1 / 12, 1 / 4, 1 / 4)),
        ("sapo", (1 / 12, 1 / 4, 1 / 4)),
        ("dapo", (1 / 10, 1 / 10, 1 / 10)),
        ("bnpo", (1 / 10, 1 / 10, 1 / 10)),
        ("cispo", (1 / 10, 1 / 10, 1 / 10)),
        ("vespo", (1 / 10, 1 / 10, 1 / 10)),
        ("dr_grpo", (1 / 200, 1 / 200, 1 / 200)),
        ("luspo", (1 / 4, 1 / 4, 1 / 4)),
    ],
)
def test_each_loss_type_weighs_a_token_by_its_own_rule(loss_type: str, wanted: tuple[float, ...]):
    totals = StepTotals(completions=4, tokens=10)
    loss = make_loss(loss_type, {"epsilon_high": 5.0} if loss_type == "cispo" else {}, max_completion_length=50)
    found = loss.token_weights(f64(3.0, 1.0, 0.0), totals)
    torch.testing.assert_close(found, f64(*wanted))


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("token_truncate", (0.5, 2.0, 1.0, 1.0, 1.0, 1.0)),
        ("token_mask", (0.5, 0.0, 1.0, 1.0, 1.0, 1.0)),
        ("sequence_truncate", (2.0, 2.0, 2.0, 1.0, 1.0, 1.0)),
        ("sequence_mask", (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)),
        ("geometric_truncate", (math.sqrt(3.0),) * 3 + (1.0, 1.0, 1.0)),
        ("geometric_mask", (math.sqrt(3.0),) * 3 + (1.0, 1.0, 1.0)),
    ],
)
def test_sampler_correction_by_level_and_bound(mode: str, wanted: tuple[float, ...]):
    old = f64(0.1, 0.6, 0.9, 0.5, 0.5, 0.5).log()
    sampling = f64(0.2, 0.1, 0.1, 0.5, NAN, NAN).log()  # ratios 0.5, 6; product 3 over two masked tokens
    segments = three_and_two()
    weights = sampler_weights(sampler_log_ratio(old, sampling, segments), segments, mode, 0.25, 2.0)
    torch.testing.assert_close(weights.per_token, f64(*wanted))
    bounded = (weights.bounded & weights.counted).sum()
    assert bounded == (0 if mode.startswith("geometric") else 1)


def test_sampler_correction_without_a_lower_bound_keeps_small_weights():
    segments = Segments.of(torch.tensor([0]), torch.tensor([True]), completions=1)
    weights = sampler_weights(f64(-50.0), segments, "token_mask", None, 2.0)
    torch.testing.assert_close(weights.per_token, f64(math.exp(-50.0)))


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 12345])
def test_entropy_threshold_is_torchs_quantile_to_the_bit(count: int, quantile: float):
    entropies = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) * 5
    assert torch.equal(entropy_threshold(entropies, quantile), torch.quantile(entropies.float(), 1 - quantile))


def test_high_entropy_mask_keeps_the_top_share_of_masked_tokens():
    segments = Segments.of(torch.tensor([0] * 6), torch.tensor([1, 1, 1, 1, 1, 0]).bool(), completions=1)
    entropies = f64(0.1, 0.5, 0.3, 0.4, 0.2, 99.0)
    threshold = entropy_threshold(entropies[segments.mask], top_entropy_quantile=0.5)
    assert high_entropy_mask(entropies, threshold, segments.mask).tolist() == [False, True, True, True, False, False]
    assert entropy_threshold(entropies[:0], 0.5) == 0.0


def test_adaptive_entropy_coefficient_starts_silent_moves_by_steps_within_bounds_and_resumes():
    controller = AdaptiveEntropyCoefficient(0.5, minimum=0.25, maximum=1.0, step=0.5, target=1.0)
    assert controller.applied == 0.0  # nothing was measured yet
    controller.update(1.0)
    assert controller.applied == 1.0
    controller.update(0.9)
    assert controller.applied == 1.0  # at its maximum
    resumed = AdaptiveEntropyCoefficient(0.5, minimum=0.25, maximum=1.0, step=0.5, target=1.0)
    resumed.load_state_dict(controller.state_dict())
    assert resumed == controller
    controller.update(1.1)
    controller.update(1.1)
    assert (controller.coefficient, controller.applied) == (0.25, 0.0)


def test_metric_sums_combine_over_ranks_as_over_microbatches():
    one = MetricSums({"n": f64(3.0)[0]}, {"b": f64(6, 2), "a": f64(1, 1)}, {"low": f64(2)[0]}, {"high": f64(5)[0]})
    two = MetricSums({"n": f64(4.0)[0]}, {"b": f64(0, 1), "a": f64(0, 0)}, {"low": f64(1)[0]}, {"high": f64(4)[0]})
    wanted = {"n": 7.0, "a": 1.0, "b": 2.0, "low": 1.0, "high": 5.0}
    assert (one + two).result() == wanted
    assert (two + one).over_ranks().result() == wanted  # a single rank


def test_a_metric_that_saw_nothing_is_left_out():
    empty = MetricSums(means={"kl": f64(0, 0)}, minima={"low": f64(math.inf)[0]}, maxima={"high": f64(-math.inf)[0]})
    assert empty.result() == {}
    assert MetricSums().result() == {}
