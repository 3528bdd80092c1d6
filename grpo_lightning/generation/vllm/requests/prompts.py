"""Prompts as requests to vLLM, with sampling settings in its words, and what it has no room for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.parts import PartRequest
from grpo_lightning.generation.room import check_room
from grpo_lightning.generation.turns import TurnRequest

MAX_MODEL_LENGTH = "model.generator.init_args.max_model_length"
STRUCTURED = ("regex", "json", "grammar", "choice")


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


def single_request(
    asked: TurnRequest | PartRequest, sampling: SamplingSettings, eos_ids: Iterable[int], is_seeded: bool = True
) -> EngineRequest:
    """A turn of a rollout, or a part of a completion: one completion, with a limit and, where it is seeded, a seed of its own."""
    own = replace(sampling, num_generations=1, max_completion_length=asked.limit)
    (request,) = engine_requests([asked.prompt_ids], own, [asked.seed], eos_ids, is_seeded)
    return request


def check_structured_outputs(settings: dict[str, Any]) -> None:
    """Refuses anything but one of regex, json, grammar and choice.

    Raises:
        ValueError: Naming what was found.
    """
    if settings and (len(settings) != 1 or next(iter(settings)) not in STRUCTURED):
        raise ValueError(
            f"model.structured_outputs={settings!r} is not one of {', '.join(STRUCTURED)} with its value. "
            "Give exactly one, such as {regex: '[0-9]+'}."
        )


def common_sampling_parameters(sampling: SamplingSettings, eos_ids: Iterable[int]) -> dict[str, Any]:
    """What vLLM's ``SamplingParams`` and its completions endpoint call these settings, but for n, seed and structure.

    The end-of-sequence ids are passed as stop tokens and vLLM's own are ignored: then exactly they end a completion.
    """
    check_structured_outputs(sampling.structured_outputs or {})
    parameters: dict[str, Any] = {
        "max_tokens": sampling.max_completion_length,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "top_k": sampling.top_k,
        "min_p": float(sampling.min_p),
        "repetition_penalty": float(sampling.repetition_penalty),
        "logprobs": 0,  # of the sampled token only
        "ignore_eos": True,
        "stop_token_ids": sorted(eos_ids),
        "skip_special_tokens": False,  # stop strings are looked for in the text with its special tokens
    }
    if sampling.stop:
        parameters |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    return parameters


def seed_of_prompt(seed: int) -> int:
    """A seed of 63 bits folded to 31: torch's CPU generator drops the rest. Completion g of a prompt gets seed + g."""
    return (seed ^ (seed >> 31)) & 0x7FFFFFFF


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
