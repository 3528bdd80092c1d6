"""One engine over all ranks, without vLLM: every rank has to sample whenever one of them does, or all of them wait."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.generation import SamplingSettings, TransformersGenerator
from grpo_lightning.generation.base import OnCompleted
from grpo_lightning.types import Rollouts

PATIENCE = timedelta(seconds=20)
"""A call that another rank does not make fails after it."""


class SharedGenerator(TransformersGenerator):
    """Gathers the prompts of all ranks in a group of its own, as the engine of a tensor-parallel group does."""

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
        super().start(policy, tokenizer, model_name_or_path)
        self.calls: list[tuple[SamplingSettings, list[int]]] = []
        """The settings of each call, and how many prompts each rank brought."""
        self.tensor_parallel_size = dist.get_world_size() if dist.is_initialized() else 1
        self.group = dist.new_group(timeout=PATIENCE) if self.tensor_parallel_size > 1 else None

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingSettings,
        seeds: Sequence[int],
        on_completed: OnCompleted | None = None,
    ) -> Rollouts:
        calls = [(sampling, len(prompt_ids))]
        if self.group is not None:
            calls *= self.tensor_parallel_size
            dist.all_gather_object(calls, calls[0], group=self.group)
        assert all(settings == sampling for settings, _ in calls), f"ranks sample with different settings: {calls}"
        self.calls.append((sampling, [count for _, count in calls]))
        return super().generate(prompt_ids, sampling, seeds, on_completed)
