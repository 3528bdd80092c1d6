"""Advantages of RLOO, REINFORCE++ with baseline, OPO and MaxRL, and of rewards that tell tokens apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import AdvantageEstimator, CompletionTokens, ScoredStep, group_mean
from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import Experience, per_completion
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.types import Rollouts

NAN = math.nan
REWARDS = [1.0, 0.0, 0.5, 0.25, 1.0]
GROUPS = [7, 3, 7, 3, 3]
LENGTHS = [2, 5, 3, 1, 4]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def estimate(advantages: Any, rewards: list[float] = REWARDS, **settings: Any) -> Tensor:
    lengths = torch.tensor(LENGTHS)
    estimator = AdvantageEstimator(advantages=advantages, **settings)
    tokens = CompletionTokens(lengths, lengths)
    return estimator(f64(*rewards).unsqueeze(1), torch.tensor(GROUPS), f64(1.0), tokens).advantages


def by_group(rule: Callable[[int, list[int]], float]) -> Tensor:
    """The rule of a completion and the members of its group, over all completions."""
    return f64(*[rule(i, [j for j in range(5) if GROUPS[j] == GROUPS[i]]) for i in range(5)])


def test_rloo_compares_with_the_mean_of_the_other_completions():
    def leave_one_out(i: int, members: list[int]) -> float:
        others = [REWARDS[j] for j in members if j != i]
        return REWARDS[i] - sum(others) / len(others)

    torch.testing.assert_close(estimate("rloo"), by_group(leave_one_out))


def test_rloo_leaves_a_completion_without_a_reward_out_and_one_alone_at_zero():
    found = estimate("rloo", [1.0, NAN, NAN, 0.25, 1.0])
    torch.testing.assert_close(found, f64(0.0, 0.0, 0.0, -0.75, 0.75))


def test_opo_weighs_the_baseline_by_length():
    def weighted(i: int, members: list[int]) -> float:
        return REWARDS[i] - sum(LENGTHS[j] * REWARDS[j] for j in members) / sum(LENGTHS[j] for j in members)

    torch.testing.assert_close(estimate("opo"), by_group(weighted))


def test_maxrl_divides_by_the_mean_reward_and_teaches_nothing_where_none_succeeded():
    def normalised(i: int, members: list[int]) -> float:
        mean = sum(REWARDS[j] for j in members) / len(members)
        return (REWARDS[i] - mean) / (mean + 1e-6)

    torch.testing.assert_close(estimate("maxrl"), by_group(normalised))
    assert estimate("maxrl", [0.0] * 5).tolist() == [0.0] * 5
    with pytest.raises(ValueError, match=r"divides by the mean reward of a group, which is -0\.5 for one of them"):
        estimate("maxrl", [-1.0, 0.0, 0.0, 0.0, 0.0])


def test_reinforce_plus_plus_with_baseline_normalises_over_all_tokens_of_the_step():
    means = {7: 0.75, 3: 1.25 / 3}
    tokens = f64(*[REWARDS[i] - means[GROUPS[i]] for i in range(5) for _ in range(LENGTHS[i])])
    whitened = (tokens - tokens.mean()) / tokens.var(unbiased=False).sqrt()
    firsts = [0, 2, 7, 10, 11]
    torch.testing.assert_close(estimate("reinforce_plus_plus_baseline"), whitened[firsts])
    assert estimate("reinforce_plus_plus_baseline", [NAN, 1.0, NAN, 1.0, 1.0]).tolist() == [0.0] * 5


def own_rule(step: ScoredStep) -> Tensor:
    return 2 * (step.rewards - group_mean(step.rewards, step.groups))


def too_many(step: ScoredStep) -> Tensor:
    return torch.zeros(7)


def as_list(step: ScoredStep) -> list[float]:
    return step.rewards.tolist()


def test_a_rule_of_ones_own_is_an_import_path_or_a_function_and_its_shape_is_checked():
    wanted = by_group(lambda i, members: 2 * (REWARDS[i] - sum(REWARDS[j] for j in members) / len(members)))
    torch.testing.assert_close(estimate(f"{__name__}.own_rule"), wanted)
    torch.testing.assert_close(estimate(own_rule), wanted)
    with pytest.raises(ValueError, match=r"gave a tensor of shape \(7,\) for 5 completions of 15 tokens"):
        estimate(too_many)
    with pytest.raises(
        ValueError, match=r"model.advantages='as_list' gave a list. Return a torch.Tensor with one value"
    ):
        estimate(as_list)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"advantages": "gae"}, "model.advantages='gae' is unknown. Choose one of grpo, rloo"),
        ({"advantages": "rloo", "scale_rewards": "batch"}, "model.scale_rewards='batch' has no effect with model.adv"),
        ({"advantages": {"class_path": "opo", "init_args": {"a": 1}}}, "model.advantages.init_args={'a': 1} has no"),
        ({"advantages": "math.pi"}, "model.advantages='math.pi' cannot be called with a ScoredStep"),
    ],
)
def test_advantages_that_cannot_be_made_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:
        AdvantageEstimator(**settings)
    assert str(error.value).startswith(message)


def two_rollouts() -> Rollouts:
    """Completion 0: two turns, of two and one tokens, with a tool's token between. Completion 1: one turn of three."""
    rollouts = Rollouts.from_lists([[1]], [[5, 6, 7, 8], [5, 6, 7]], [[-1.0] * 4, [-1.0] * 3], [False] * 2, [0, 0])
    return replace(rollouts, completion_mask=torch.tensor([True, True, False, True, True, True, True]))


def token_advantages(lists: dict[str, Any], *values: float, scale: str = "none", **settings: Any) -> Tensor:
    table = f64(*values).unsqueeze(1)
    tokens = CompletionTokens.of(two_rollouts(), table, ("r",), f64(2.0), lists)
    estimator = AdvantageEstimator(scale, **settings)
    return estimator(table, torch.tensor([0, 0]), f64(2.0), tokens).advantages


def test_a_reward_per_turn_reaches_the_tokens_of_its_turn_and_of_all_before_it():
    found = token_advantages({"r": [(1.0, 0.0), None]}, 1.0, 0.5)
    # weighted step rewards 2, 0 and 1 with mean 1: normalised 1 and -1, and 0
    assert found.tolist() == [0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 0.0]


def test_a_reward_per_token_counts_from_its_own_token_backwards_and_a_none_in_it_not_at_all():
    found = token_advantages({"r": [(0.0, 0.5, NAN, 1.0), (0.0, 0.0, 0.0)]}, 1.5, 0.0)
    mean = (1.0 + 2.0) / 6  # of six entries, weighted
    first = [3.0 - 3 * mean, 3.0 - 2 * mean, 2.0 - mean, 2.0 - mean]
    torch.testing.assert_close(found, f64(*first, -3 * mean, -2 * mean, -mean))


def test_lists_of_a_reward_of_weight_0_change_no_advantage():
    table, weights = f64(1.0, 4.0, 0.5, 2.0).reshape(2, 2), f64(2.0, 0.0)
    tokens = CompletionTokens.of(two_rollouts(), table, ("r", "w"), weights, {"w": [(1.0, 3.0), (2.0,)]})
    found = AdvantageEstimator("none")(table, torch.tensor([0, 0]), weights, tokens).advantages
    assert found.tolist() == [0.5, -0.5]  # totals 2 and 1
    listed = {"r": [(1.0, 0.0), None], "w": [(1.0, 3.0), (2.0,)]}
    tokens = CompletionTokens.of(two_rollouts(), table, ("r", "w"), weights, listed)
    found = AdvantageEstimator("none")(table, torch.tensor([0, 0]), weights, tokens).advantages
    assert found.tolist() == token_advantages({"r": [(1.0, 0.0), None]}, 1.0, 0.5).tolist()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_list_of_one_turn_gives_the_advantages_of_the_same_number_to_the_last_bit(scale: str):
    once = token_advantages({}, 0.3, 0.7, scale=scale)
    listed = token_advantages({"r": [None, (0.7,)]}, 0.3, 0.7, scale=scale)
    assert torch.equal(listed, once.repeat_interleave(torch.tensor([4, 3])))


def test_a_rank_without_lists_has_its_totals_at_the_last_tokens():
    ones = torch.tensor([2])
    parts = [CompletionTokens(ones, ones, f64(1.0, 3.0)), CompletionTokens(ones, ones)]
    joined = CompletionTokens.joined(parts, [f64(4.0), f64(5.0)])
    torch.testing.assert_close(joined.rewards, f64(1.0, 3.0, NAN, 5.0), equal_nan=True)
    assert [part.tolist() for part in joined.split(f64(1, 2, 3, 4), parts)] == [[1.0, 2.0], [3.0, 4.0]]
    assert [part.tolist() for part in joined.split(f64(1, 2), parts)] == [[1.0], [2.0]]


def test_a_list_of_another_length_is_refused_with_what_was_expected():
    with pytest.raises(ValueError, match="'r' returned 3 values for completion 0, which has 4 tokens and 2 turns"):
        token_advantages({"r": [(1.0, 0.0, 0.0), None]}, 1.0, 0.0)


@pytest.mark.parametrize("settings", [{"advantages": "rloo"}, {"partial_rewards": "renormalize"}])
def test_lists_that_the_settings_would_ignore_are_refused(settings: dict[str, Any]):
    with pytest.raises(ValueError, match="A reward returned a list for a completion"):
        token_advantages({"r": [(1.0, 0.0), None]}, 1.0, 0.0, scale="group", **settings)


def experience() -> Experience:
    rollouts = two_rollouts()
    logprobs = {"old_logprobs": -torch.rand(7), "ref_logprobs": -torch.rand(7)}
    return Experience(
        rollouts, torch.zeros(2), rollouts.completion_mask, rollouts.sampling_logprobs, is_uncertain=None, **logprobs
    )


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_advantages_of_another_shape_are_refused_at_the_door(size: int):
    message = rf"shape \({size},\), but the step has 2 completions of 7 tokens in all. Return one value per completion"
    with pytest.raises(ValueError, match=message):
        experience().with_advantages(torch.zeros(size))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            torch.tensor([1.0, NAN]),
            "hold 1 values that are not finite, the first nan at completion 1, one of 2 of its prompt",
        ),
        (
            torch.tensor([1.0, 1.0, 1.0, torch.inf, NAN, 1.0, 1.0]),
            "hold 2 values .* the first inf at completion 0, one of 2",
        ),
        (torch.tensor([1, 2]), "are torch.int64. Return floating point numbers"),
    ],
)
def test_advantages_that_are_no_finite_floating_point_numbers_are_refused(values: Tensor, said: str):
    with pytest.raises(ValueError, match=said):
        experience().with_advantages(values)


@dataclass(frozen=True)
class Powered:
    """A rule with a setting."""

    power: float = 0.5

    def __call__(self, step: ScoredStep) -> Tensor:
        centred = step.rewards - group_mean(step.rewards, step.groups)
        return centred.sign() * centred.abs() ** self.power


def test_a_rule_with_settings_is_a_class_its_object_or_its_import_path():
    path = {"class_path": f"{__name__}.Powered", "init_args": {"power": 0.5}}
    for given in (Powered, Powered(), f"{__name__}.Powered", path):
        found = estimate(given, [4.0, -4.0, 0.0, 1.0, 1.0])
        torch.testing.assert_close(found, estimate(Powered(0.5), [4.0, -4.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "model.advantages=3 is no name, no import path and nothing that can be called"),
        (
            {"class_path": "grpo", "init_args": {"gama": 0.9}},
            r"grpo cannot be made with init_args=.*'gama'\. It takes .*gamma",
        ),
        ({"class_path": f"{__name__}.Powered", "init_args": {"pwer": 1}}, r"It takes power\."),
        (f"{__name__}.Powerd", rf"has no attribute 'Powerd'\. Did you mean {__name__}.Powered\?"),
        ("no_such_file.rule", "No module named 'no_such_file'. Its file is looked for in the directory"),
    ],
    ids=str,
)
def test_what_is_no_rule_is_refused_with_what_was_perhaps_meant(given: Any, said: str):
    with pytest.raises(ValueError, match=said):
        AdvantageEstimator(advantages=given)


def test_a_setting_of_a_rule_that_has_no_effect_is_refused():
    with pytest.raises(ValueError, match=r"has no effect with model.multi_objective_aggregation='normalize_then_sum'"):
        AdvantageEstimator(
            multi_objective_aggregation="normalize_then_sum",
            advantages={"class_path": "grpo", "init_args": {"gamma": 0.9}},
        )


def test_a_rule_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"model.advantages='short' gave a tensor of shape \(1,\) for 5 completions"):
        estimate(short)


def short(step: ScoredStep) -> Tensor:
    return step.rewards[:1]


@pytest.mark.parametrize(("values", "kind"), [(None, "NoneType"), ([0.5, -0.5], "list")])
def test_advantages_that_are_no_tensor_are_refused_with_the_shapes_that_are_meant(values, kind: str):
    message = rf"The advantages are a {kind} and no tensor. Return a torch.Tensor with one value per completion, \(2,\)"
    with pytest.raises(TypeError, match=message):
        experience().with_advantages(values)


def test_logprobs_of_another_shape_are_refused_at_the_door():
    with pytest.raises(ValueError, match=r"experience.old_logprobs has shape \(6,\), but the step has 7 tokens"):
        replace(experience(), old_logprobs=torch.zeros(6))


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "sapo", "vespo", "gmpo", "dppo"])
def test_a_constant_advantage_per_token_gives_the_gradient_of_one_per_completion_to_the_last_bit(loss_type: str):
    torch.manual_seed(0)
    step, whole = experience(), torch.tensor([0.7, -0.3])
    mode = "token_truncate" if loss_type == "vespo" else "sequence_mask"
    objective = Objective(loss_type, beta=0.1, off_policy_mask_threshold=5.0, importance_sampling_mode=mode)
    gradients = []
    for advantages in (whole, whole.repeat_interleave(torch.tensor([4, 3]))):
        filled = step.with_advantages(advantages)
        assert filled.has_advantage.tolist() == [True, True]
        torch.manual_seed(1)
        logprobs = (-torch.rand(7)).requires_grad_()
        tokens = filled.token_batch(torch.tensor([1, 0]))
        loss, _ = objective.loss(tokens, logprobs, None, StepTotals(2, 6))
        gradients.append(torch.autograd.grad(loss, logprobs)[0])
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_each_token_is_trained_by_its_own_advantage():
    step = experience().with_advantages(torch.tensor([1.0, 2.0, 9.0, 0.0, 0.0, 0.0, 0.0]))
    assert step.has_advantage.tolist() == [True, False]
    logprobs = step.old_logprobs.clone().requires_grad_()
    objective = Objective(importance_sampling_correction=False)
    loss, _ = objective.loss(step.token_batch(torch.tensor([0, 1])), logprobs, None, StepTotals(2, 6))
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0]) / 6)
    assert per_completion(step.advantages, step.rollouts).tolist() == [1.0, 0.0]
