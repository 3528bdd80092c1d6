"""Credit from turn to turn: the discounted sum of what follows, by hand."""

from __future__ import annotations

import pytest
import torch

from grpo_lightning.algorithm.advantages import AdvantageEstimator, CompletionTokens
from grpo_lightning.types import Rollouts


def tokens(lists):
    """Two completions: [own, own, tool, own] and [own, tool, own], with two turns each."""
    rollouts = Rollouts(
        prompt_ids=torch.tensor([1]),
        prompt_lengths=torch.tensor([1]),
        completion_ids=torch.arange(7),
        completion_lengths=torch.tensor([4, 3]),
        group=torch.tensor([0, 0]),
        sampling_logprobs=torch.zeros(7),
        truncated=torch.tensor([False, False]),
        completion_mask=torch.tensor([1, 1, 0, 1, 1, 0, 1]).bool(),
    )
    values = torch.tensor([[sum(entries)] for entries in lists], dtype=torch.float64)
    return values, CompletionTokens.of(rollouts, values, ["r"], torch.ones(1), {"r": lists})


def advantages(gamma, lists=([1.0, 3.0], [0.0, 0.0])):
    rule = {"class_path": "grpo", "init_args": {"gamma": gamma}}
    values, placed = tokens([tuple(entries) for entries in lists])
    estimate = AdvantageEstimator(scale_rewards="none", advantages=rule)
    return estimate(values, torch.tensor([0, 0]), torch.ones(1), placed).advantages.tolist()


def test_a_turn_gets_its_reward_and_the_discounted_one_of_the_next():
    # The four turns earn 1, 3, 0, 0, on average 1: centred 0, 2, -1, -1.
    assert advantages(0.5) == pytest.approx([1.0, 1.0, 2.0, 2.0, -1.5, -1.0, -1.0])


def test_without_a_discount_it_is_the_sum():
    assert advantages(1.0) == pytest.approx([2.0, 2.0, 2.0, 2.0, -2.0, -1.0, -1.0])


def test_a_discount_counts_turns_and_not_tokens():
    assert advantages(0.999999) == pytest.approx(advantages(1.0), abs=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 1.1])
def test_a_discount_out_of_range_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma=.* is no discount"):
        advantages(gamma)
