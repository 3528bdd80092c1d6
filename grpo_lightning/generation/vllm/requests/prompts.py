"""Prompts as requests to a vLLM engine, and what it has no room for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.room import check_room
from grpo_lightning.generation.turns import TurnRequest
from grpo_lightning.generation.vllm.engine.sampling_parameters import common_sampling_parameters, seed_of_prompt

MAX_MODEL_LENGTH = "model.generator.init_args.max_model_length"


@dataclass(frozen=True)
class EngineRequest:
    """One prompt for an engine: completion ``first + i`` of the batch is the i-th of its ``parameters["n"]``."""

    first: int
    prompt_ids: Sequence[int]
    parameters: dict[str, Any]
    """As vLLM's ``SamplingParams`` and its completions endpoint both call them."""
    rendered: Any = None
    """The prompt as the engine takes it, where it shows images; else None."""


def engine_requests(
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingSettings,
    seeds: Sequence[int],
    eos_ids: Iterable[int],
    seed_per_prompt: bool,
    rendered: Sequence[Any] | None = None,
) -> list[EngineRequest]:
    """One request a prompt, with n = G, so that the prompt is computed once.

    Greedy decoding is the exception: vLLM takes it with n = 1 only.

    Args:
        prompt_ids: B prompts.
        sampling: How to draw.
        seeds: B of them.
        eos_ids: Tokens that end a completion.
        seed_per_prompt: Whether each request is drawn with its own seed.
        rendered: B of them, see ``EngineRequest``.
    """
    common = common_sampling_parameters(sampling, eos_ids)
    size, greedy = sampling.num_generations, sampling.temperature == 0
    requests = []
    for b, (ids, seed) in enumerate(zip(prompt_ids, seeds, strict=True)):
        for first in range(b * size, (b + 1) * size, 1 if greedy else size):
            own: dict[str, Any] = {"n": 1} if greedy else {"n": size}
            if seed_per_prompt and not greedy:
                own["seed"] = seed_of_prompt(seed)
            requests.append(EngineRequest(first, ids, common | own, rendered[b] if rendered else None))
    return requests


def turn_request(request: TurnRequest, sampling: SamplingSettings, eos_ids: Iterable[int]) -> EngineRequest:
    """A turn of a rollout: one completion, with a seed of its own."""
    own = replace(sampling, num_generations=1, max_completion_length=request.limit)
    return engine_requests([request.prompt_ids], own, [request.seed], eos_ids, seed_per_prompt=True)[0]


def check_prompts(
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingSettings,
    seeds: Sequence[int],
    limit: int,
    setting: str = MAX_MODEL_LENGTH,
) -> None:
    """Refuses prompts that leave no room for their completions, which vLLM would cut short without a word.

    Args:
        prompt_ids: B prompts.
        sampling: For the length of completions.
        seeds: One a prompt.
        limit: Tokens that the engine holds of a prompt with its completion.
        setting: What decides the limit.

    Raises:
        RefusedPromptError: Of the first such prompt.
    """
    if len(seeds) != len(prompt_ids):
        raise ValueError(f"{len(prompt_ids)} prompts came with {len(seeds)} seeds; each prompt needs one.")
    check_room(prompt_ids, [sampling.max_completion_length] * len(prompt_ids), limit, held_by(limit, setting))


def held_by(limit: int, setting: str = MAX_MODEL_LENGTH) -> str:
    """That a vLLM engine holds so many tokens, and what to do about it."""
    return (
        f"the vLLM engine holds {limit} ({setting}). Raise that, lower model.max_completion_length, or leave out long "
        "prompts with data.max_prompt_length."
    )
