"""A generator for async rollouts, without vLLM: a copy of the policy of its own, in the place of a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.generation import Generator, SamplingSettings, TransformersGenerator
from grpo_lightning.generation.base import OnCompleted
from grpo_lightning.generation.vllm.weight_stream import WeightStream
from grpo_lightning.types import Rollouts


class AsyncCopyGenerator(Generator):
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

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
        self.copy = AutoModelForCausalLM.from_pretrained(model_name_or_path, dtype=torch.float32)
        self.sampler = TransformersGenerator()
        self.sampler.start(self.copy, tokenizer, model_name_or_path)

    @torch.no_grad()
    def update_weights(self, policy: PreTrainedModel) -> dict[str, float]:
        assert self.events[-1:] != ["sample"], "weights were sent while the next batch was sampled"
        self.events.append("weights")
        for name, tensor in WeightStream(policy):
            self.copy.get_parameter(name).copy_(tensor)
        return {}

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
            return self.sampler.generate(prompt_ids, sampling, seeds, on_completed)
        finally:
            self.events.append("sampled")

    def interrupt(self) -> None:
        self.interrupted.set()
