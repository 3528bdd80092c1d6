"""Rewards that return a list for a completion: one entry per token or turn."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch

from grpo_lightning.rewards import RewardContractError, RewardTable, resolve_rewards
from grpo_lightning.rewards.runner import RewardRunner
from grpo_lightning.rewards.runtime.answer_checks import ListedReward, checked_values


def per_token(completions_ids: list[list[int]], **_: Any) -> list[Any]:
    return [[0.0] * (len(ids) - 1) + [1.0] if len(ids) > 1 else 0.5 for ids in completions_ids]


def plain(completions: list[Any], **_: Any) -> list[float]:
    return [2.0] * len(completions)


def test_a_list_counts_as_its_sum_and_is_kept_beside_it():
    runner = RewardRunner(resolve_rewards([per_token, plain]))
    table = runner.score(["p"] * 3, ["a", "b", "c"], [[1, 2, 3], [1], [1, 2]])
    runner.close()
    assert table.values.tolist() == [[1.0, 2.0], [0.5, 2.0], [1.0, 2.0]]
    assert table.lists == {"per_token": [(0.0, 0.0, 1.0), None, (0.0, 1.0)]}
    assert table.take(torch.tensor([2, 1])).lists == {"per_token": [(0.0, 1.0), None]}


def test_joined_tables_have_none_where_one_of_them_had_no_lists():
    values, weights = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    listed = RewardTable(values, ("r",), weights, lists={"r": [(1.0,)]})
    joined = RewardTable.joined([RewardTable(values, ("r",), weights), listed])
    assert joined.lists == {"r": [None, (1.0,)]}


def test_none_arrays_and_pickling_keep_the_entries():
    first, second, third = checked_values([[1.0, None], torch.tensor([0.5, 0.25]), [None]], 3, "r")
    assert first == 1.0 and math.isnan(third)
    assert isinstance(first, ListedReward) and first.entries[0] == 1.0 and math.isnan(first.entries[1])
    assert isinstance(second, ListedReward) and second == 0.75
    copy = pickle.loads(pickle.dumps(second))
    assert copy == 0.75 and copy.entries == (0.5, 0.25)


@pytest.mark.parametrize("entry", [math.inf, "1", [1.0]])
def test_an_entry_that_is_no_number_breaks_the_contract(entry: Any):
    with pytest.raises(RewardContractError, match="Reward 'r' returned"):
        checked_values([[1.0, entry]], 1, "r")


def test_an_empty_list_breaks_the_contract():
    with pytest.raises(RewardContractError, match=r"Reward 'r' returned \[\] \(list\) for completion 0"):
        checked_values([[]], 1, "r")
