"""SamplingSettings to vLLM's sampling parameters, and vLLM's outputs to rollouts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_lightning.generation.base import OnCompleted, SamplingSettings
from grpo_lightning.generation.room import check_room
from grpo_lightning.generation.turns import SampledTurn, TurnRequest
from grpo_lightning.generation.vllm.engine_routes import engine_routes
from grpo_lightning.types import Rollouts

MAX_MODEL_LENGTH = "model.generator.init_args.max_model_length"
STRUCTURED = ("regex", "json", "grammar", "choice")


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


class TokenIds(list[int]):
    """A list whose ``in`` looks up a hash: vLLM asks at every token of every completion whether it is a stop token.

    With the 690 ids that end a completion of the benchmarks' random model, the plain list took 10 microseconds a token.

    Example:
        >>> ids = TokenIds([7, 9])
        >>> 9 in ids, 8 in ids
        (True, False)
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self._set = frozenset(self)

    def __contains__(self, token: object) -> bool:
        return token in self._set

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenIds, (list(self),)


def sampled_logprobs(logprobs: Any, token_ids: Sequence[int]) -> list[float]:
    """The sampled tokens' logprobs out of one completion's output, from a flat list where vLLM made one."""
    flat = getattr(logprobs, "logprobs", None)
    if flat is not None and len(flat) == len(token_ids):
        return flat
    return [position[token].logprob for position, token in zip(logprobs, token_ids, strict=True)]


def further_parameters(sampling: SamplingSettings) -> dict[str, Any]:
    """Arguments of ``vllm.SamplingParams`` that all requests of an engine in this process share."""
    return {
        "detokenize": bool(sampling.stop),  # nothing else reads the text
        "flat_logprobs": True,
        "structured_outputs": structured_outputs(sampling.structured_outputs or {}),
    }


def turn_request(request: TurnRequest, sampling: SamplingSettings, eos_ids: Iterable[int]) -> EngineRequest:
    """A turn of a rollout: one completion, with a seed of its own."""
    own = replace(sampling, num_generations=1, max_completion_length=request.limit)
    return engine_requests([request.prompt_ids], own, [request.seed], eos_ids, seed_per_prompt=True)[0]


def structured_outputs(settings: dict[str, Any]) -> Any:
    """The constraint of vLLM for one of regex, json, grammar or choice; None for an empty dict."""
    if not settings:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(**settings)


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
