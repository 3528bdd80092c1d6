"""Tests of gates, products and minima."""

from __future__ import annotations

import pytest
import torch

from grpo_lightning.rewards import RewardComposition

nan = float("nan")
NAMES = ("accuracy", "format", "length")
VALUES = torch.tensor([[1.0, 1.0, -0.5], [1.0, 0.0, 0.25], [nan, 0.0, 0.5], [1.0, nan, nan], [nan, nan, nan]])


def compose(composition: RewardComposition, weights: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    composition.check(NAMES, weights)
    return composition(VALUES, NAMES, torch.tensor(weights))


def test_a_sum_changes_nothing() -> None:
    values, weights = compose(RewardComposition(), [1.0, 0.5, 2.0])
    torch.testing.assert_close(values, VALUES, equal_nan=True)
    assert weights.tolist() == [1.0, 0.5, 2.0]


def test_a_closed_gate_makes_its_reward_zero_and_leaves_none_and_the_others_alone() -> None:
    values, _ = compose(RewardComposition(gates={"accuracy": "format"}), [1.0, 0.5, 2.0])
    assert values[:2, 0].tolist() == [1.0, 0.0]
    assert values[2, 0].isnan()  # a reward that does not apply stays None behind a closed gate
    assert values[3, 0].item() == 1.0  # a gate that does not apply is open
    torch.testing.assert_close(values[:, 1:], VALUES[:, 1:], equal_nan=True)
    half, _ = compose(RewardComposition(gates={"accuracy": "format"}, threshold=0.0), [1.0, 0.5, 2.0])
    torch.testing.assert_close(half, VALUES, equal_nan=True)


def test_a_product_and_a_minimum_are_over_the_rewards_of_weight_one_that_apply() -> None:
    product, weights = compose(RewardComposition(how="product"), [1.0, 1.0, 1.0])
    expected = torch.tensor([[-0.5], [0.0], [0.0], [1.0], [nan]])
    torch.testing.assert_close(product, expected, equal_nan=True)
    assert weights.tolist() == [1.0]
    least, _ = compose(RewardComposition(how="minimum", gates={"length": "format"}), [1.0, 0.0, 1.0])
    torch.testing.assert_close(least, torch.tensor([[-0.5], [0.0], [0.0], [1.0], [nan]]), equal_nan=True)


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        ({"how": "median"}, [1.0, 1.0, 1.0], r"model\.reward_composition\.how='median'"),
        (
            {"gates": {"accuracy": "fluency"}},
            [1.0, 1.0, 1.0],
            "names 'fluency', which is not among .* accuracy, format",
        ),
        ({"gates": {"accuracy": "format", "format": "length"}}, [1.0, 1.0, 1.0], "'format' both a gate and gated"),
        ({"how": "product"}, [1.0, 0.5, 1.0], r"model\.reward_weights \(format 0\.5\) have no meaning"),
    ],
)
def test_compositions_that_cannot_work_are_refused(settings: dict, weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(RewardComposition(**settings), weights)
