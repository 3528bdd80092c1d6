"""TRL's own call of reward functions: GRPOTrainer._calculate_rewards on a trainer without a model."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerState
from trl import GRPOTrainer
from trl_shapes import COLUMNS, IDS

STATE = {"global_step": 10, "max_steps": 40, "epoch": 0.5, "num_train_epochs": 2}
HISTORY = [{"reward": 0.25, "step": 9, "epoch": 0.45}]


def trl_scores(
    reward: Callable[..., Any], prompts: list[Any], completions: list[Any]
) -> tuple[list[float], dict, dict]:
    """(N,) float32 values with NaN for None, and the columns and metrics that the reward logged."""
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), is_main_process=True)
    trainer.args = SimpleNamespace(report_to=[])
    trainer.state = TrainerState(**STATE, log_history=list(HISTORY))
    trainer.reward_funcs, trainer.reward_processing_classes, trainer.reward_func_names = [reward], [None], ["reward"]
    trainer.environments, trainer.async_loop = None, loop
    trainer._pending_extra_logs, trainer._pending_metrics = defaultdict(list), defaultdict(list)
    columns = {name: list(values) for name, values in COLUMNS.items()}
    inputs = [{"prompt": p, **{k: v[n] for k, v in columns.items()}} for n, p in enumerate(prompts)]
    try:
        values = trainer._calculate_rewards(inputs, prompts, completions, [list(ids) for ids in IDS])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    return values[:, 0].tolist(), dict(trainer._pending_extra_logs), dict(trainer._pending_metrics)
