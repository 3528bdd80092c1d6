"""Rollouts by a function of the user's own, as TRL's ``rollout_func``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from grpo_lightning.generation.base import Generator, SamplingSettings
from grpo_lightning.messages import StopReason
from grpo_lightning.policy.policy import Policy
from grpo_lightning.rewards.base import RESERVED
from grpo_lightning.rollouts.source import OnRolloutCompleted, RolloutSettings, RolloutSource
from grpo_lightning.rollouts.turns.collect import collect
from grpo_lightning.rollouts.turns.rollout import PlayedRollout, TokenTrail
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import Conversation, Prompt, PromptBatch, Rollouts


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


RolloutFunction = Callable[[list[Prompt], FunctionTrainer], Mapping[str, Any]]
NEEDED = ("prompt_ids", "completion_ids", "logprobs")
MASK = "env_mask"


class FunctionSource(RolloutSource):
    """Rollouts that ``model.rollout_func`` gives; every step calls it once on each rank.

    Args:
        settings: Generator and rewards.
        sampling: How completions are drawn, for the function.
        policy: What they are drawn from.
        seed: Of the run.
        function: ``rollout_func(prompts, trainer)`` with each prompt G times, one after the other. It returns a mapping with
            N entries each of ``prompt_ids``, ``completion_ids``, ``logprobs`` (nats, of the sampler), perhaps ``env_mask``
            (1 where the policy chose the token), and of whatever else rewards get as a column.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        sampling: SamplingSettings,
        policy: Policy,
        seed: int,
        function: RolloutFunction,
    ) -> None:
        super().__init__(settings, sampling, policy, seed)
        if self.generator.tensor_parallel_size > 1:
            raise ValueError(
                f"model.generator.init_args.tensor_parallel_size={self.generator.tensor_parallel_size}: ranks that share an "
                "engine make the same calls, and each calls model.rollout_func for itself. Use tensor_parallel_size=1."
            )
        self.function = function

    @torch.no_grad()
    def generate(
        self,
        batch: PromptBatch,
        sampling: SamplingSettings,
        seeds: list[int],
        on_completed: OnRolloutCompleted | None = None,
    ) -> Rollouts:
        """G rollouts of each prompt; see ``RolloutSource.generate``.

        Raises:
            ValueError: If the function gives something else than rollouts.
        """
        if not len(batch):
            return collect([], [], sampling.num_generations, 0)
        prompts = [prompt for prompt in batch.prompts for _ in range(sampling.num_generations)]
        trainer = FunctionTrainer(self.generator, self.policy, sampling, seeds)
        given = self.function(list(prompts), trainer)
        end_ids = self.policy.end_ids
        played = [self._played(n, prompts[n], row, end_ids) for n, row in enumerate(rows_of(given, len(prompts)))]
        for n, one in enumerate(played):
            if on_completed is not None:
                on_completed(n, one.trail.ids, one.conversation)
        return collect(played, batch.prompt_ids, sampling.num_generations, min(end_ids, default=0))

    def _played(self, n: int, prompt: Prompt, row: dict[str, Any], end_ids: frozenset[int]) -> PlayedRollout:
        prompt_ids, ids = list(row.pop("prompt_ids")), list(row.pop("completion_ids"))
        logprobs = [float(each[0] if isinstance(each, Sequence) else each) for each in row.pop("logprobs")]
        mask = [bool(own) for own in row.pop(MASK, [True] * len(ids))]
        if not ids or len({len(ids), len(logprobs), len(mask)}) > 1:
            raise ValueError(
                f"model.rollout_func gave {len(ids)} completion_ids, {len(logprobs)} logprobs and {len(mask)} entries of "
                f"{MASK} for completion {n}. Each needs one entry per token, and at least one."
            )
        known = [value if own else 0.0 for value, own in zip(logprobs, mask, strict=True)]
        text = str(self.policy.tokenizer.decode(ids, skip_special_tokens=True))
        turns = sum(own and not before for own, before in zip(mask, [False, *mask], strict=False))
        truncated = ids[-1] not in end_ids
        stop: StopReason = "max_tokens" if truncated else "eos"
        messages = [{"role": "assistant", "content": text}]
        conversation = Conversation(messages, stop, [0.0] * turns, columns=row)
        return PlayedRollout(TokenTrail(prompt_ids, ids, known, mask), conversation, truncated)


def rows_of(given: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """What a rollout function gave, by completion; a value that is no list belongs to all.

    Raises:
        ValueError: If something is missing, or there are more or fewer entries.

    Example:
        >>> rows_of({"prompt_ids": [[1]], "completion_ids": [[2]], "logprobs": [[-0.5]], "task": "a"}, 1)
        [{'prompt_ids': [1], 'completion_ids': [2], 'logprobs': [-0.5], 'task': 'a'}]
    """
    missing = [name for name in NEEDED if name not in given]
    taken = sorted((RESERVED - {"completion_ids"}) & given.keys())
    sizes = {name: len(values) for name, values in given.items() if isinstance(values, list)}
    wrong = [f"{size} {name}" for name, size in sizes.items() if size != count]
    if missing or wrong or taken:
        raise ValueError(
            f"model.rollout_func gave {', '.join(wrong) or ', '.join(taken) or 'nothing'} "
            + (f"and lacks {', '.join(missing)}. " if missing else "where that cannot be. ")
            + f"It gets each prompt as often as it needs completions, and returns lists with {count} entries under "
            f"{', '.join(NEEDED)}, perhaps {MASK}, and columns for rewards that have names of their own."
        )
    return [
        {name: values[n] if isinstance(values, list) else values for name, values in given.items()}
        for n in range(count)
    ]
