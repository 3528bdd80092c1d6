"""A generator for async rollouts, without vLLM: a copy of the policy of its own, in the place of a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from copy_generator import CopyGenerator
from transformers import PreTrainedModel

from grpo_lightning.generation import SamplingSettings
from grpo_lightning.generation.base import OnCompleted
from grpo_lightning.types import Rollouts


class AsyncCopyGenerator(CopyGenerator):
    """Notes when it gets weights and when it samples, and can be made to wait or to fail.

    Args:
        before: Called at the start of each ``generate`` with its number, from 0.
    """

    supports_async_rollouts: ClassVar[bool] = True

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self.before = before
        self.events: list[str] = []
        self.threads: list[str] = []
        """Name of the thread of each ``generate``."""
        self.interrupted = threading.Event()

    def update_weights(self, policy: PreTrainedModel) -> dict[str, float]:
        assert self.events[-1:] != ["sample"], "weights were sent while the next batch was sampled"
        self.events.append("weights")
        return super().update_weights(policy)

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingSettings,
        seeds: Sequence[int],
        on_completed: OnCompleted | None = None,
    ) -> Rollouts:
        self.events.append("sample")
        self.threads.append(threading.current_thread().name)
        try:
            self.before(len(self.threads) - 1)
            return super().generate(prompt_ids, sampling, seeds, on_completed)
        finally:
            self.events.append("sampled")

    def interrupt(self) -> None:
        self.interrupted.set()
