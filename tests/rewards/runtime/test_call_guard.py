"""The CUDA device of rewards' threads. The driver is absent here, so what would be told to it is written down."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from runs import fit

from grpo_lightning.rewards import FunctionReward, RewardRunner

Told = dict[int, torch.device]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Thread -> the device that it was given last."""
    devices: Told = {}
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.update({threading.get_ident(): device}))
    return devices


def test_threads_and_the_event_loop_of_rewards_work_on_the_device_of_their_rank(told: Told) -> None:
    found: dict[str, torch.device | None] = {}

    def plain(completions: list[str], **columns: object) -> list[float]:
        found["plain"] = told.get(threading.get_ident())
        return [1.0] * len(completions)

    async def waiting(completions: list[str], **columns: object) -> list[float]:
        found["waiting"] = told.get(threading.get_ident())
        return [1.0] * len(completions)

    runner = RewardRunner([FunctionReward(name=one.__name__, function=one) for one in (plain, waiting)])
    runner.guard.device = torch.device("cuda", 3)
    runner.score(["p"], ["c"], [[1]])
    runner.close()
    assert found == {"plain": torch.device("cuda", 3), "waiting": torch.device("cuda", 3)}


def test_a_run_tells_its_rewards_its_device_and_no_gpu_where_it_has_none(
    told: Told, tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = fit(tiny_model_dir, tmp_path)
    assert module.source.reward_runner.guard.device == torch.device("cpu")
    assert module.evaluation.reward_runner.guard.device == torch.device("cpu")
    assert told == {}
