"""Rollouts of several turns on two ranks: the same as on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ranks import run_ranks
from rollouts.turns.calculators import train


def on_ranks(folder: Path, ranks: int) -> dict[str, Any]:

    run = train(
        folder / str(ranks),
        2,
        trainer={"devices": ranks, "strategy": "ddp" if ranks > 1 else "auto"},
        data={"batch_size": 2 // ranks},
        seed=1,
    )
    del run["module"]
    return run


def test_two_ranks_take_the_steps_of_one(tmp_path):
    [alone], both = run_ranks(1, on_ranks, tmp_path, 1), run_ranks(2, on_ranks, tmp_path, 2)
    for rank in both:
        torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-3, atol=1e-5)
    for step in range(2):
        assert sorted(uid for rank in both for uid in rank["steps"][step]["uids"]) == sorted(
            alone["steps"][step]["uids"]
        )
    assert [token for rank in both for token in rank["steps"][0]["ids"]] == alone["steps"][0]["ids"]
