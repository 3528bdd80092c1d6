"""Completions of a vLLM server, whole ones alone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.vllm.requests.completions import Completions
from grpo_lightning.generation.vllm.requests.prompts import EngineRequest
from grpo_lightning.generation.vllm.serving.asking import ask_until_answered
from grpo_lightning.generation.vllm.serving.client import ServerRefused, ServerUnavailable, VLLMClient
from grpo_lightning.generation.vllm.serving.endpoints import LOWEST_LOGPROB, TEXT, TOKENS, Endpoint
from grpo_lightning.generation.vllm.serving.images import check_tokens
from grpo_lightning.generation.vllm.serving.process import SERVED_NAME

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
        ServerUnavailable: If there is none, or only a part of one.
    """
    async with slots:
        answer = await _answer(client, endpoint if request.rendered is None else TOKENS, model, request)
    if request.rendered is not None:
        check_tokens(answer["prompt_token_ids"], request.prompt_ids)
    rows: list[Choice] = []
    for choice in answer["choices"]:
        if choice["finish_reason"] not in ("stop", "length"):  # "abort": the engine is being shut down
            raise ServerUnavailable(f"a completion ended with finish_reason={choice['finish_reason']!r}")
        logprobs = _logprobs(choice["logprobs"])
        rows.append((request.first + choice["index"], choice["token_ids"], logprobs, choice["finish_reason"]))
    if len(rows) != request.parameters["n"]:
        raise ServerUnavailable(f"{len(rows)} of {request.parameters['n']} completions came back.")
    return rows


async def _answer(client: VLLMClient, endpoint: Endpoint, model: str, request: EngineRequest) -> Any:
    """Of ``TEXT`` where the other endpoint refuses what it may take.

    That has no more completions of a prompt than the server runs requests at a time, and may be gone after a restart.
    """
    try:
        return await client.send("POST", endpoint.path, {"model": model} | endpoint.body(request))
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
    cards = client.call("GET", "/v1/models")["data"]
    names = [card["id"] for card in cards]
    if SERVED_NAME not in names:
        raise ValueError(
            f"the server at {client.address} serves {', '.join(names)}, not {SERVED_NAME!r}. Start it with "
            f"python -m grpo_lightning serve, or with --served-model-name {SERVED_NAME}."
        )
    return int(cards[names.index(SERVED_NAME)]["max_model_len"])
