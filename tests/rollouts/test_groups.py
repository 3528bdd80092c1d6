"""Rollouts in checkpoints: what users' functions and environments said of them can be read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo_lightning.rollouts.groups import rollouts_of_state, rollouts_state
from grpo_lightning.types import Conversation, Rollouts

SAID: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "columns": ({"columns": {"solved": np.bool_(True), "at": Path("a")}}, {"columns": {"solved": True, "at": "a"}}),
    "messages": (
        {"messages": [{"role": "tool", "content": "5", "cost": np.float32(0.5)}]},
        {"messages": [{"role": "tool", "content": "5", "cost": 0.5}]},
    ),
    "opening": (
        {"opening": [{"role": "user", "content": np.str_("Guess"), "level": np.int64(3)}]},
        {"opening": [{"role": "user", "content": "Guess", "level": 3}]},
    ),
    "rewards": (
        {"rewards": [np.float64(0.5)], "final_reward": np.float32(1.0)},
        {"rewards": [0.5], "final_reward": 1.0},
    ),
}


@pytest.mark.parametrize("said", SAID)
def test_whatever_was_said_of_a_rollout_is_read_out_of_a_checkpoint(tmp_path: Path, said: str) -> None:
    given, kept = SAID[said]
    base: dict[str, Any] = {"messages": [{"role": "assistant", "content": "5"}], "stop": "eos"}
    rollouts = Rollouts.from_lists([[1]], [[2]], [[0.0]], [False], [0])
    rollouts = replace(rollouts, conversations=(Conversation(**base | given),))
    torch.save(rollouts_state(rollouts), tmp_path / "a.ckpt")
    (again,) = rollouts_of_state(torch.load(tmp_path / "a.ckpt", weights_only=True)).conversations
    assert again == Conversation(**base | kept) and repr(again) == repr(Conversation(**base | kept))
