"""What a rollout function is given as its trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from grpo_lightning.generation.base import Generator, SamplingSettings
from grpo_lightning.policy.policy import Policy
from grpo_lightning.seeds import derive_seed


class FunctionTrainer:
    """The names that rollout functions read of TRL's trainer, and a way to sample.

    Args:
        generator: Has the policy's weights.
        policy: With its tokenizer.
        sampling: How completions of this call are drawn; in evaluation another way than in training.
        seeds: Of the prompts.
    """

    def __init__(self, generator: Generator, policy: Policy, sampling: SamplingSettings, seeds: Sequence[int]) -> None:
        self.args = sampling
        """``num_generations``, ``max_completion_length``, ``temperature``, ``top_p``, ... of this call."""
        self.num_generations, self.max_completion_length = sampling.num_generations, sampling.max_completion_length
        self.processing_class, self.model = policy.tokenizer, policy.model
        self._generator, self._seeds, self._calls = generator, list(seeds), 0

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], max_tokens: int | None = None
    ) -> tuple[list[list[int]], list[list[float]]]:
        """One completion of each prompt by the run's generator: their token ids, and logprobs in nats.

        Calls may follow one another, with what a tool said behind the earlier ones; each draws with seeds of its own, so that
        a run repeats.

        Args:
            prompt_ids: Tokens of any number of prompts.
            max_tokens: Of each completion; by default max_completion_length.
        """
        self._calls += 1
        seeds = [derive_seed(*self._seeds, self._calls, n) for n in range(len(prompt_ids))]
        limit = max_tokens or self.max_completion_length
        sampling: Any = replace(self.args, num_generations=1, max_completion_length=limit)
        rollouts = self._generator.generate([list(ids) for ids in prompt_ids], sampling, seeds)
        return [ids.tolist() for ids in rollouts.completions()], rollouts.logprob_lists()
