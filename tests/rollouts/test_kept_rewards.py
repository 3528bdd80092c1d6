"""Rewards that a checkpoint keeps."""

from __future__ import annotations

import torch

from grpo_lightning.rewards import RewardTable
from grpo_lightning.rollouts.kept_rewards import rewards_of_state, rewards_state


def test_kept_rewards_come_back_for_the_rows_that_a_rank_takes() -> None:
    weights = torch.tensor([2.0], dtype=torch.float64)
    values = torch.tensor([[0.0], [1.0], [torch.nan]], dtype=torch.float64)
    seen, metrics = {"seen": ["a", "b", "c"]}, {"rewards/r/errors": 1.0}
    table = RewardTable(values, ("r",), weights, seen, metrics, {"r": [None, (0.5, 0.5), None]})
    state = rewards_state(lambda: table)
    await_rewards = rewards_of_state([state, state], torch.tensor([1, 5, 3]))
    assert await_rewards is not None
    kept = await_rewards()
    torch.testing.assert_close(kept.values[:, 0], values[[1, 2, 0], 0], equal_nan=True)
    assert (kept.names, kept.weights.tolist(), kept.metrics) == (("r",), [2.0], metrics)
    assert (kept.extra, kept.lists) == ({"seen": ["b", "c", "a"]}, {"r": [(0.5, 0.5), None, None]})
    assert rewards_of_state([state, None], torch.tensor([0])) is None
