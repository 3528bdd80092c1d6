"""Completions of an engine in this process that can be cut short, and gone on with later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.parts import OnEnded, Part, PartEnd, PartRequest
from grpo_lightning.generation.room import check_room
from grpo_lightning.generation.vllm.engine.engine import ColocatedEngine
from grpo_lightning.generation.vllm.engine.sampling_parameters import further_parameters
from grpo_lightning.generation.vllm.requests.completions import Completions
from grpo_lightning.generation.vllm.requests.prompts import held_by, single_request
from grpo_lightning.seeds import derive_seed


def engine_parts(
    engine: ColocatedEngine,
    requests: Sequence[PartRequest],
    sampling: SamplingSettings,
    eos_ids: Iterable[int],
    seeded: bool,
    on_ended: OnEnded,
) -> list[Part]:
    """One part of each request; see ``CutsCompletions.sample_parts``.

    Args:
        engine: With the policy's weights, awake.
        requests: Neighbours with the same prompt find it in the engine's prefix cache.
        sampling: How to draw.
        eos_ids: Tokens that end a completion.
        seeded: Whether each request is drawn with its own seed; else all of them with one seed.
        on_ended: Says when it is enough.

    Raises:
        ValueError: If the engine has no room for a request.
        FloatingPointError: If a logprob is NaN.
    """
    limit = engine.max_model_length
    check_room([each.prompt_ids for each in requests], [each.limit for each in requests], limit, held_by(limit))
    is_enough = False

    def completed(n: int, _: list[int]) -> None:
        nonlocal is_enough
        is_enough |= _end_of(found, n, requests[n].limit) != "cut" and on_ended(n)

    found = Completions(len(requests), 1, completed)
    asked = [replace(single_request(each, sampling, eos_ids, seeded), first=n) for n, each in enumerate(requests)]
    seed = derive_seed("vllm", *(request.seed for request in requests))
    engine.sample(asked, further_parameters(sampling), found, seed, lambda: is_enough)
    found.check_finite()
    ends = [_end_of(found, n, request.limit) for n, request in enumerate(requests)]
    return [Part(*part) for part in zip(found.token_ids, found.logprobs, ends, strict=True)]


def _end_of(found: Completions, n: int, limit: int) -> PartEnd:
    """How completion n has ended; cut where it has not, or was made to."""
    if not found.done[n]:
        return "cut"
    if not found.truncated[n]:
        return "stop"
    return "limit" if len(found.token_ids[n]) == limit else "cut"
