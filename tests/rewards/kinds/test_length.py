"""Tests of the length reward, with values worked out by hand from the papers' equations."""

from __future__ import annotations

import math
from typing import Any

import pytest

from grpo_lightning.rewards import AccuracyReward, LengthReward, RewardContractError, RewardState


def score(reward: LengthReward, lengths: list[int], **kwargs: Any) -> list[float | None]:
    kwargs.setdefault("completions", ["text"] * len(lengths))
    return reward(prompts=["p"] * len(lengths), completions_ids=[[7] * length for length in lengths], **kwargs)


def test_soft_overlong_is_equation_13_of_dapo() -> None:
    reward = LengthReward(max_length=100, cache_length=20)
    assert score(reward, [1, 80, 81, 90, 100, 150]) == pytest.approx([0.0, 0.0, -0.05, -0.5, -1.0, -1.0])


def test_soft_overlong_takes_the_runs_limit_and_a_fifth_of_it_by_default() -> None:
    state = RewardState(max_completion_length=50)  # falls over the last 10 tokens
    assert score(LengthReward(), [40, 45, 50], trainer_state=state) == pytest.approx([0.0, -0.5, -1.0])
    with pytest.raises(RewardContractError, match="'length' does not know the longest completion: set max_length"):
        score(LengthReward(), [40], trainer_state=RewardState())


def test_target_falls_linearly_on_both_sides() -> None:
    reward = LengthReward(shape="target", target_length=100, width=50)
    assert score(reward, [100, 125, 75, 150, 10, 1000]) == pytest.approx([1.0, 0.5, 0.5, 0.0, 0.0, 0.0])
    assert score(LengthReward(shape="target", target_length=10), [5, 20]) == pytest.approx([0.5, 0.0])


def test_cosine_is_short_when_right_long_when_wrong_and_worst_when_exceeded() -> None:
    reward = LengthReward(shape="cosine", max_length=100, accuracy=AccuracyReward(mode="exact"))
    right, wrong = "<answer>a</answer>", "<answer>b</answer>"
    values = score(
        reward,
        [0, 50, 25, 0, 50, 100, 101, 50],
        completions=[right, right, right, wrong, wrong, right, wrong, right],
        ground_truth=["a"] * 7 + [None],
    )
    quarter = 1.0 + 0.5 * (1.0 + math.sqrt(0.5))  # cos(pi / 4)
    assert values[:7] == pytest.approx([2.0, 1.5, quarter, -10.0, -5.0, -10.0, -10.0])
    assert values[7] is None


def test_cosine_takes_its_end_points_from_the_settings() -> None:
    accuracy = AccuracyReward(mode="exact")
    reward = LengthReward(
        shape="cosine", max_length=4, correct=(1.0, 0.5), wrong=(-1.0, -0.5), exceeded=-3.0, accuracy=accuracy
    )
    completions = ["<answer>a</answer>"] * 2 + ["<answer>b</answer>", "a"]
    values = score(reward, [0, 2, 2, 4], completions=completions, ground_truth=["a"] * 4)
    assert values == pytest.approx([1.0, 0.75, -0.75, -3.0])


def test_tokens_are_counted_not_guessed() -> None:
    with pytest.raises(RewardContractError, match="'length' counts tokens and was called without completions_ids"):
        LengthReward(max_length=10)(prompts=["p"], completions=["four words are here"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "linear"}, "shape='linear' is unknown. Choose soft_overlong, cosine, target"),
        ({"shape": "target"}, "shape=target needs target_length"),
        ({"target_length": 10}, "target_length has no effect with shape=soft_overlong"),
        ({"shape": "target", "target_length": 10, "max_length": 5}, "max_length has no effect with shape=target"),
        ({"max_length": 0}, "max_length=0 tokens cannot be"),
        ({"max_length": 10, "cache_length": 20}, "cache_length=20 exceeds max_length=10"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LengthReward(**settings)
