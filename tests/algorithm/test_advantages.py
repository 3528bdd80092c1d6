"""Advantages by hand: means, standard deviations, missing rewards, groups told by id."""

from __future__ import annotations

import math

import pytest
import torch

from grpo_lightning.algorithm.advantages import (
    AdvantageEstimator,
    batch_std,
    combine_rewards,
    group_mean,
    group_std,
    is_partly_scored,
)

NAN = math.nan


def rewards(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def weights(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ONE = weights(1.0)
TWO_PAIRS = torch.tensor([0, 0, 1, 1])


def test_group_scale_divides_by_the_sample_standard_deviation_plus_1e_4():
    result = AdvantageEstimator()(rewards([1.0], [2.0], [6.0]), torch.tensor([4, 4, 4]), ONE)
    std = math.sqrt((4 + 1 + 9) / 2)  # mean 3, divisor n - 1
    expected = torch.tensor([-2.0, -1.0, 3.0], dtype=torch.float64) / (std + 1e-4)
    torch.testing.assert_close(result.advantages, expected)


def test_batch_scale_centres_on_the_group_and_divides_by_the_std_of_all_rewards():
    result = AdvantageEstimator("batch")(rewards([0.0], [2.0], [10.0], [12.0]), TWO_PAIRS, ONE)
    std = math.sqrt((36 + 16 + 16 + 36) / 3)  # mean 6
    expected = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64) / (std + 1e-4)
    torch.testing.assert_close(result.advantages, expected)


@pytest.mark.parametrize(("given", "meant"), [(True, "group"), (False, "none")])
def test_scale_rewards_takes_the_booleans_of_trl(given: bool, meant: str):
    assert AdvantageEstimator(scale_rewards=given).scale_rewards == meant


def test_without_scaling_the_advantage_is_the_distance_to_the_group_mean():
    result = AdvantageEstimator("none")(rewards([0.0], [2.0], [10.0], [13.0]), TWO_PAIRS, ONE)
    torch.testing.assert_close(result.advantages, torch.tensor([-1.0, 1.0, -1.5, 1.5], dtype=torch.float64))


def test_a_group_is_told_by_its_id_wherever_its_members_stand_and_however_many_they_are():
    values = rewards([0.0], [5.0], [2.0], [7.0], [4.0])
    groups = torch.tensor([90, 7, 90, 7, 90])
    result = AdvantageEstimator("none")(values, groups, ONE)
    torch.testing.assert_close(result.advantages, torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_unanimous_group_has_advantages_of_exactly_zero_in_spite_of_rounding(scale: str):
    values = torch.tensor([0.1] * 3 + [0.7] * 3 + [0.0, 1.0], dtype=torch.float64).unsqueeze(1)
    assert values[:3].mean() != 0.1  # 0.1 + 0.1 + 0.1 is not 0.3
    groups = torch.tensor([0] * 3 + [1] * 3 + [2] * 2)
    result = AdvantageEstimator(scale)(values, groups, ONE)
    assert result.advantages[:6].eq(0).all()
    assert result.metrics().result()["frac_reward_zero_std"] == 6 / 8


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_completions_without_any_reward_get_zero_and_stay_out_of_their_groups_mean(aggregation: str):
    values = rewards([1.0, 1.0], [NAN, NAN], [3.0, 2.0], [0.0, 0.0], [2.0, 4.0], [NAN, NAN])
    full = rewards([1.0, 1.0], [3.0, 2.0], [0.0, 0.0], [2.0, 4.0])
    estimator = AdvantageEstimator(multi_objective_aggregation=aggregation)
    result = estimator(values, torch.tensor([0, 0, 0, 1, 1, 1]), weights(1.0, 0.5))
    without = estimator(full, TWO_PAIRS, weights(1.0, 0.5))
    assert result.advantages[[1, 5]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(result.advantages[[0, 2, 3, 4]], without.advantages)
    assert result.metrics().result()["frac_reward_none"] == 2 / 6


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_only_scored_completion_of_a_group_has_nothing_to_be_compared_with(scale: str):
    result = AdvantageEstimator(scale)(rewards([5.0], [NAN], [0.0], [1.0]), TWO_PAIRS, ONE)
    assert result.advantages[:2].tolist() == [0.0, 0.0]
    assert result.advantages[3] > 0
    assert result.group_stds[:2].tolist() == [0.0, 0.0]


def test_a_step_without_any_reward_has_zero_advantages_and_no_reward_metric():
    result = AdvantageEstimator()(rewards([NAN], [NAN]), torch.tensor([0, 0]), ONE)
    assert result.advantages.tolist() == [0.0, 0.0]
    metrics = result.metrics().result()
    assert "reward" not in metrics
    assert metrics["frac_reward_zero_std"] == 1.0


def test_the_total_is_the_weighted_sum_of_the_rewards_that_are_there():
    totals = combine_rewards(rewards([1.0, 2.0], [NAN, 2.0], [1.0, NAN], [NAN, NAN]), weights(0.5, -3.0))
    torch.testing.assert_close(totals, weights(-5.5, -6.0, 0.5, NAN), equal_nan=True)


@pytest.mark.parametrize("policy", ["sum", "renormalize", "drop"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_reward_of_weight_0_changes_no_advantage(policy, scale):
    groups = torch.tensor([0, 0, 0, 1, 1])
    judged = rewards([1.0], [NAN], [3.0], [NAN], [NAN])
    watched = torch.cat([judged, rewards([5.0], [7.0], [NAN], [9.0], [1.0])], dim=1)
    alone = AdvantageEstimator(scale, partial_rewards=policy)(judged, groups, ONE)
    beside = AdvantageEstimator(scale, partial_rewards=policy)(watched, groups, weights(1.0, 0.0))
    assert alone.advantages[1] == 0 and alone.rewards.isnan().tolist() == [False, True, False, True, True]
    torch.testing.assert_close(beside.advantages, alone.advantages, rtol=0, atol=0)
    assert beside.metrics().result() == alone.metrics().result()


def test_where_all_weights_are_0_the_totals_are():
    totals = combine_rewards(rewards([2.0, NAN], [NAN, NAN]), weights(0.0, 0.0))
    torch.testing.assert_close(totals, weights(0.0, NAN), equal_nan=True)


def test_renormalize_scales_a_partial_total_up_to_the_full_weight():
    values, importance = rewards([1.0, 1.0], [1.0, NAN], [NAN, 1.0]), weights(3.0, -1.0)
    totals = combine_rewards(values, importance, "renormalize")
    torch.testing.assert_close(totals, weights(2.0, 3.0 * 4 / 3, -1.0 * 4 / 1))


def test_drop_leaves_a_partly_scored_completion_without_a_reward():
    values = rewards([1.0, 1.0], [1.0, NAN], [2.0, 1.0])
    torch.testing.assert_close(combine_rewards(values, weights(1, 1), "drop"), weights(2, NAN, 3), equal_nan=True)


def test_a_reward_that_skips_a_whole_group_makes_nobody_in_it_partly_scored():
    values = rewards([1.0, 1.0], [1.0, 0.0], [1.0, NAN], [0.0, NAN], [1.0, NAN], [1.0, 0.0])
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    assert is_partly_scored(values, groups, weights(1, 1)).tolist() == [False, False, False, False, True, False]
    assert not is_partly_scored(values, groups, weights(1, 0)).any()  # a reward of weight 0 is only watched
    result = AdvantageEstimator("none", partial_rewards="drop")(values, groups, weights(1, 1))
    torch.testing.assert_close(result.advantages, weights(0.5, -0.5, 0.5, -0.5, 0.0, 0.0))
    assert result.metrics().result()["frac_reward_partly_none"] == pytest.approx(1 / 6)


def test_gdpo_normalises_each_reward_in_its_group_then_the_sum_over_the_batch():
    values = rewards([0.0, 0.0], [1.0, 100.0], [0.0, 300.0], [1.0, 100.0])
    result = AdvantageEstimator(multi_objective_aggregation="normalize_then_sum")(values, TWO_PAIRS, weights(1.0, 2.0))
    unit = 0.5 / (math.sqrt(0.5) + 1e-4)  # (1 - 0.5) / (std of {0, 1} + 1e-4)
    wide_50, wide_100 = 50 / (math.sqrt(5000) + 1e-4), 100 / (math.sqrt(20000) + 1e-4)
    totals = weights(-unit - 2 * wide_50, unit + 2 * wide_50, -unit + 2 * wide_100, unit - 2 * wide_100)
    torch.testing.assert_close(result.advantages, (totals - totals.mean()) / (totals.std() + 1e-4))
    torch.testing.assert_close(result.rewards, weights(0.0, 201.0, 600.0, 201.0))  # logged as plain totals


def test_gdpo_centres_on_the_batch_where_renormalized_partial_rows_have_moved_the_mean():
    values = rewards([1.0, 1.0], [0.0, NAN], [0.0, 0.0], [0.0, 1.0])
    estimator = AdvantageEstimator(multi_objective_aggregation="normalize_then_sum", partial_rewards="renormalize")
    result = estimator(values, TWO_PAIRS, weights(1.0, 1.0))
    unit = 0.5 / (math.sqrt(0.5) + 1e-4)
    totals = weights(unit, -2 * unit, -unit, unit)  # row 1: its one reward counts for both
    torch.testing.assert_close(result.advantages, (totals + unit / 4) / (totals.std() + 1e-4))


def test_gdpo_with_a_reward_that_nobody_has_equals_gdpo_without_it():
    values = rewards([0.0], [1.0], [0.5], [0.0])
    missing = torch.cat([values, torch.full_like(values, NAN)], dim=1)
    estimator = AdvantageEstimator(multi_objective_aggregation="normalize_then_sum")
    alone = estimator(values, TWO_PAIRS, ONE).advantages
    torch.testing.assert_close(estimator(missing, TWO_PAIRS, weights(1, 1)).advantages, alone)


def test_group_statistics_ignore_nan_and_batch_std_is_that_of_a_sample():
    values, groups = weights(1.0, NAN, 3.0, 8.0), torch.tensor([5, 5, 5, 2])
    torch.testing.assert_close(group_mean(values, groups), weights(2.0, 2.0, 2.0, 8.0))
    root = math.sqrt(2.0)
    torch.testing.assert_close(group_std(values, groups), weights(root, root, root, 0.0))
    torch.testing.assert_close(batch_std(values), torch.tensor(math.sqrt(13.0), dtype=torch.float64))


def test_a_setting_that_would_be_ignored_or_is_unknown_is_refused_in_the_words_of_the_config():
    with pytest.raises(ValueError, match=r"model.scale_rewards='none' has no effect with"):
        AdvantageEstimator("none", "normalize_then_sum")
    with pytest.raises(ValueError, match=r"model.scale_rewards='std' is unknown. Choose one of group, batch, none"):
        AdvantageEstimator("std")
    with pytest.raises(ValueError, match=r"model.partial_rewards='mean' is unknown"):
        AdvantageEstimator(partial_rewards="mean")
