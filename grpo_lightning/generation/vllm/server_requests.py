"""Asking a vLLM server for completions: many prompts at a time, and which of them went without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import as_completed

from grpo_lightning.generation.vllm.client import ServerUnavailable, VLLMClient, result_of
from grpo_lightning.generation.vllm.requests import Completions, EngineRequest
from grpo_lightning.generation.vllm.server_process import SERVED_NAME

Choice = tuple[int, list[int], list[float], str]
"""Place in the batch, token ids, logprobs and finish reason of one completion."""


def ask(
    client: VLLMClient, model: str, requests: Sequence[EngineRequest], completions: Completions, at_a_time: int
) -> tuple[list[EngineRequest], ServerUnavailable | None]:
    """Sends the requests and adds what comes back to ``completions``, from this thread.

    Args:
        client: Of the server.
        model: The name that it serves the policy, or its adapter, under.
        requests: One a prompt, at least one.
        completions: Of the whole batch.
        at_a_time: Requests that wait for an answer at the same time.

    Returns:
        The requests that were not answered, in order, and why the last of them was not.
    """
    unanswered: list[EngineRequest] = []
    reason: ServerUnavailable | None = None
    slots = asyncio.Semaphore(at_a_time)
    answers = {client.start(complete(client, model, request, slots)): request for request in requests}
    try:
        for answer in as_completed(answers):
            try:
                choices = result_of(answer)
            except ServerUnavailable as error:
                unanswered.append(answers[answer])
                reason = error
                continue
            for n, token_ids, logprobs, finish_reason in choices:
                completions.extend(n, token_ids, logprobs, finish_reason)
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise
    return sorted(unanswered, key=lambda request: request.first), reason


async def complete(client: VLLMClient, model: str, request: EngineRequest, slots: asyncio.Semaphore) -> list[Choice]:
    """The whole answer to one request, asked for once it has one of the slots.

    Raises:
        ServerUnavailable: If there is none, or only a part of one.
    """
    body = {"model": model, "prompt": list(request.prompt_ids), "return_token_ids": True, **request.parameters}
    async with slots:
        answer = await client.send("POST", "/v1/completions", body)
    rows: list[Choice] = []
    for choice in answer["choices"]:
        if choice["finish_reason"] not in ("stop", "length"):  # "abort": the engine is being shut down
            raise ServerUnavailable(f"a completion ended with finish_reason={choice['finish_reason']!r}")
        logprobs = choice["logprobs"]["token_logprobs"]
        rows.append((request.first + choice["index"], choice["token_ids"], logprobs, choice["finish_reason"]))
    if len(rows) != request.parameters["n"]:
        raise ServerUnavailable(f"{len(rows)} of {request.parameters['n']} completions came back.")
    return rows


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
