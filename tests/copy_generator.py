"""A generator for sharded policies without vLLM: a whole copy on every rank, as an engine has, fed by the weight stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from grpo_lightning.generation import Generator, SamplingSettings, TransformersGenerator
from grpo_lightning.generation.base import OnCompleted
from grpo_lightning.generation.vllm.weights.stream import WeightStream
from grpo_lightning.types import Rollouts


class CopyGenerator(Generator):
    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
        self.copy = AutoModelForCausalLM.from_pretrained(model_name_or_path, dtype=torch.float32)
        self.sampler = TransformersGenerator()
        self.sampler.start(self.copy, tokenizer, model_name_or_path)

    @torch.no_grad()
    def update_weights(self, policy: PreTrainedModel) -> dict[str, float]:
        for name, tensor in WeightStream(policy):
            self.copy.get_parameter(name).copy_(tensor)
        return {}

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingSettings,
        seeds: Sequence[int],
        on_completed: OnCompleted | None = None,
    ) -> Rollouts:
        return self.sampler.generate(prompt_ids, sampling, seeds, on_completed)
