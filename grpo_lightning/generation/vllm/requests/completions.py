"""What vLLM answers, as rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from grpo_lightning.generation.base import OnCompleted
from grpo_lightning.generation.turns import SampledTurn
from grpo_lightning.generation.vllm.requests.routed_experts import engine_routes
from grpo_lightning.types import Rollouts


class Completions:
    """The N completions of a batch while they come in, in any order.

    Args:
        num_prompts: B.
        num_generations: G.
        on_completed: Called with n and the token ids as soon as completion n has ended.
        num_experts: Of a model whose engine tells which experts each token is given; None of others.
    """

    def __init__(
        self,
        num_prompts: int,
        num_generations: int,
        on_completed: OnCompleted | None = None,
        num_experts: int | None = None,
    ) -> None:
        size = num_prompts * num_generations
        self.num_experts = num_experts
        self.routes: list[Any] = [None] * size
        """As ``engine_routes`` takes them."""
        self.num_generations = num_generations
        self.token_ids: list[list[int]] = [[] for _ in range(size)]
        self.logprobs: list[list[float]] = [[] for _ in range(size)]
        self.truncated: list[bool] = [False] * size
        self.done: list[bool] = [False] * size
        self._on_completed = on_completed

    def extend(
        self,
        n: int,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        finish_reason: str | None,
        routes: Any = None,
    ) -> None:
        """Adds tokens to completion n; with a finish reason it has ended, and its ``routes`` may be known.

        Raises:
            RuntimeError: If vLLM gave the completion up.
        """
        self.routes[n] = routes
        self.token_ids[n].extend(token_ids)
        self.logprobs[n].extend(logprobs)
        if finish_reason is None:
            return
        if finish_reason not in ("stop", "length"):
            raise RuntimeError(
                f"vLLM ended completion {n} with finish_reason={finish_reason!r} instead of sampling it."
            )
        self.truncated[n] = finish_reason == "length"
        self.done[n] = True
        if self._on_completed is not None:
            self._on_completed(n, self.token_ids[n])

    def rollouts(self, prompt_ids: Sequence[Sequence[int]], rows: range | None = None) -> Rollouts:
        """Rollouts of the prompts ``rows``, by default of all, in prompt-major order.

        Raises:
            FloatingPointError: If a logprob is NaN.
        """
        rows = range(len(prompt_ids)) if rows is None else rows
        size = self.num_generations
        chosen = [b * size + g for b in rows for g in range(size)]
        rollouts = Rollouts.from_lists(
            prompt_ids=[prompt_ids[b] for b in rows],
            completion_ids=[self.token_ids[n] for n in chosen],
            sampling_logprobs=[self.logprobs[n] for n in chosen],
            truncated=[self.truncated[n] for n in chosen],
            group=[b for b in range(len(rows)) for _ in range(size)],
        )
        self.check_finite()
        if self.num_experts is None:
            return rollouts
        lengths = rollouts.prompt_lengths.tolist(), rollouts.completion_lengths.tolist()
        routes = engine_routes([self.routes[n] for n in chosen], *lengths, self.num_experts)
        return replace(rollouts, routed_experts=routes)

    def check_finite(self) -> None:
        """Refuses logprobs that are no numbers.

        Raises:
            FloatingPointError: If there is one.
        """
        if any(math.isnan(logprob) for of_one in self.logprobs for logprob in of_one):
            raise FloatingPointError(
                "vLLM sampled tokens with the logprob NaN. The weights have diverged, or the precision overflows: lower "
                "the learning rate, or set model.generator.init_args.dtype=bfloat16."
            )


def sampled_turn(rollout: int, completions: Completions) -> SampledTurn:
    """The only one of these completions, as a turn.

    Raises:
        FloatingPointError: If a logprob is NaN.
    """
    completions.check_finite()
    return SampledTurn(rollout, completions.token_ids[0], completions.logprobs[0], completions.truncated[0])


def sampled_logprobs(logprobs: Any, token_ids: Sequence[int]) -> list[float]:
    """The sampled tokens' logprobs out of one completion's output, from a flat list where vLLM made one."""
    flat = getattr(logprobs, "logprobs", None)
    if flat is not None and len(flat) == len(token_ids):
        return flat
    return [position[token].logprob for position, token in zip(logprobs, token_ids, strict=True)]
