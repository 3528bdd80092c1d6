"""Completions of a vLLM server, whole ones alone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.vllm.requests.completions import Completions
from grpo_lightning.generation.vllm.requests.prompts import EngineRequest
from grpo_lightning.generation.vllm.serving.answers import read_as_vllms
from grpo_lightning.generation.vllm.serving.asking import ask_until_answered
from grpo_lightning.generation.vllm.serving.client import ServerRefused, ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.serving.endpoints import LOWEST_LOGPROB, TEXT, TOKENS, Endpoint
from grpo_lightning.generation.vllm.serving.images import check_tokens
from grpo_lightning.generation.vllm.serving.process import SERVED_NAME

MODELS = "/v1/models"
Choice = tuple[int, list[int], list[float], str]
"""Place in the batch, token ids, logprobs and finish reason of one completion."""


def complete_all(
    client: VLLMClient,
    endpoint: Endpoint,
    model: str,
    requests: Sequence[EngineRequest],
    completions: Completions,
    at_a_time: int,
    recover: Callable[[ServerUnavailable], None],
) -> None:
    """Adds the completions of all requests to ``completions``, from this thread.

    Args:
        client: Of the server.
        endpoint: Its for prompts without pictures.
        model: The name that it serves the policy, or its adapter, under.
        requests: One a prompt.
        completions: Of the whole batch.
        at_a_time: Requests that wait for an answer at the same time.
        recover: Waits for a server that was lost, and gives it the weights that this batch is sampled with.

    Raises:
        ServerUnavailable: If nothing was answered three times in a row.
    """
    slots = asyncio.Semaphore(at_a_time)

    def take(_: EngineRequest, choices: list[Choice]) -> None:
        for choice in choices:
            completions.extend(*choice)

    def ask(request: EngineRequest) -> Coroutine[Any, Any, list[Choice]]:
        return complete(client, endpoint, model, request, slots)

    ask_until_answered(client, requests, ask, take, recover)


async def complete(
    client: VLLMClient, endpoint: Endpoint, model: str, request: EngineRequest, slots: asyncio.Semaphore
) -> list[Choice]:
    """The whole answer to one request, asked for once it has one of the slots.

    Raises:
        ServerRefused: If it is not what vLLM answers.
        ServerUnavailable: If there is none, or only a part of one.
    """
    async with slots:
        path, answer = await _answer(client, endpoint if request.rendered is None else TOKENS, model, request)
    with read_as_vllms(client, path, answer):
        rows = [_choice(choice, request.first) for choice in answer["choices"]]
        seen = answer["prompt_token_ids"] if request.rendered is not None else []
        if len({place for place, *_ in rows}) < len(rows):
            raise ValueError("two completions have the same index")
    if request.rendered is not None:
        check_tokens(seen, request.prompt_ids)
    if len(rows) != request.parameters["n"]:
        raise ServerUnavailable(f"{len(rows)} of {request.parameters['n']} completions came back.")
    return rows


def _choice(told: dict[str, Any], first: int) -> Choice:
    """One completion of an answer, whose place is counted from ``first``."""
    reason, token_ids = told["finish_reason"], told["token_ids"]
    if reason not in ("stop", "length"):  # "abort": the engine is being shut down
        raise ServerUnavailable(f"a completion ended with finish_reason={reason!r}")
    logprobs = _logprobs(told["logprobs"])
    if len(logprobs) != len(token_ids):
        raise ValueError(f"{len(logprobs)} logprobs of {len(token_ids)} tokens")
    return first + told["index"], token_ids, logprobs, reason


async def _answer(client: VLLMClient, endpoint: Endpoint, model: str, request: EngineRequest) -> tuple[str, Any]:
    """The path and its answer, of ``TEXT`` where the other endpoint refuses what it may take.

    That has no more completions of a prompt than the server runs requests at a time, and may be gone after a restart.
    """
    try:
        return endpoint.path, await client.send("POST", endpoint.path, {"model": model} | endpoint.body(request))
    except ServerRefused:
        if endpoint is TEXT or request.rendered is not None:
            raise
    return await _answer(client, TEXT, model, request)


def _logprobs(told: dict[str, Any]) -> list[float]:
    """Of a completion's tokens, as either endpoint tells them; NaN where it has none to tell."""
    logprobs = [token["logprob"] for token in told["content"]] if "content" in told else told["token_logprobs"]
    return [logprob if logprob > LOWEST_LOGPROB else math.nan for logprob in logprobs]


def constrain(requests: Sequence[EngineRequest], sampling: SamplingSettings) -> None:
    """Adds ``model.structured_outputs``, as the endpoints take it."""
    for request in requests:
        if sampling.structured_outputs:
            request.parameters["structured_outputs"] = sampling.structured_outputs


def served_length(client: VLLMClient) -> int:
    """Tokens of a prompt with its completion that a server holds.

    Raises:
        ValueError: If it serves another model.
    """
    answer = client.call("GET", MODELS)
    with read_as_vllms(client, MODELS, answer):
        lengths = {card["id"]: card.get("max_model_len") for card in answer["data"]}
    if SERVED_NAME not in lengths:
        raise ValueError(
            f"the server at {client.address} serves {', '.join(map(str, lengths))}, not {SERVED_NAME!r}. Start it with "
            f"python -m grpo_lightning serve, or with --served-model-name {SERVED_NAME}."
        )
    with read_as_vllms(client, MODELS, answer):
        return int(lengths[SERVED_NAME])
