"""A rank whose rewards take long is waited for by the others, for as long as rewards may take."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from ranks import run_ranks
from runs import make_data, make_module, make_trainer

from grpo_lightning.distributed.gather import own_rank


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
