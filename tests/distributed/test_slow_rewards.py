"""A rank whose rewards, servers or tools take long is waited for by the others, for as long as these may take."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from ranks import run_ranks
from rollouts.turns.calculators import MODEL, train
from runs import make_data, make_module, make_trainer

from grpo_lightning.distributed.gather import own_rank
from grpo_lightning.distributed.strategies import allow_waits
from grpo_lightning.generation import VLLMServer
from grpo_lightning.rewards.runtime.settings import RewardRuntime
from grpo_lightning.rollouts.turns.settings import Turns
from grpo_lightning.training.distillation.settings import Distillation


def slow_on_one(completions: list[str], **columns: Any) -> list[float]:
    time.sleep(8.0 * own_rank()[0])
    return [float(len(text)) for text in completions]


def fit(folder: Path, model_dir: Path) -> int:
    module = make_module(model_dir, rewards=[slow_on_one])
    trainer = make_trainer(folder, 1, devices=2, strategy=DDPStrategy(timeout=timedelta(seconds=4)))
    trainer.fit(module, datamodule=make_data(folder))
    return module.steps_done


def test_other_ranks_wait_for_rewards_beyond_the_timeout_of_their_collectives(tiny_model_dir, tmp_path):
    assert run_ranks(2, fit, tmp_path, tiny_model_dir) == [1, 1]


def fit_with_tools(folder: Path) -> float:
    strategy = DDPStrategy(timeout=timedelta(seconds=4))
    settings = {"turns": Turns(max_turns=2, call_time_limit=20), "reward_runtime": RewardRuntime(step_time_limit=50)}
    run = train(folder, 1, trainer={"devices": 2, "strategy": strategy}, data={"batch_size": 1}, **settings)
    assert run["module"].steps_done == 1
    return strategy._timeout.total_seconds()


def test_they_wait_for_tools_beyond_it_too(tmp_path):
    """For rewards alone it was 84 s, and a rollout's calls may take 100 s: a start, two turns, a final reward, an end."""
    assert run_ranks(2, fit_with_tools, tmp_path) == [184.0, 184.0]  # 4 + 50 and 30 of rewards + 5 calls of 20


def test_a_server_is_waited_for_until_it_is_healthy_and_has_answered(tiny_model_dir):
    runtime = RewardRuntime(step_time_limit=50)
    server = {"generator": VLLMServer(timeout=100, request_timeout=7), "reward_runtime": runtime}
    assert make_module(tiny_model_dir, **server).source.longest_wait == 100 + 7 + 50 + 30
    turns = {"tools": [f"{__name__}.add"], "turns": Turns(max_turns=2, call_time_limit=20)}
    talking = make_module(MODEL, **server, **turns)
    assert talking.source.longest_wait == 2 * (100 + 7 + 20) + 3 * 20 + 50 + 30
    given = {"teacher": "http://teacher:8000", "top_k": 20}
    assert Distillation(**given).longest_wait == 240 + 1800
    assert Distillation(**given, timeout=100, request_timeout=7).longest_wait == 107
    assert Distillation(teacher="a/local/model").longest_wait == 0
    several = {"maths": "http://one:8000", "code": "http://two:8000", "chat": "a/local/model"}
    of_each = {"teacher": several, "teacher_column": "subject", "divergence": "sampled_token"}
    assert Distillation(**of_each, timeout=100, request_timeout=7).longest_wait == 2 * 107


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b


def test_calls_without_a_limit_are_waited_for_for_a_year():
    """``call_time_limit: .inf`` ended a run of several ranks: cannot convert float infinity to integer."""
    strategy = DDPStrategy(timeout=timedelta(minutes=1))
    allow_waits(strategy, Turns(call_time_limit=math.inf).longest_wait())
    assert strategy._timeout == timedelta(days=365, minutes=1)
