"""Asking a vLLM server for completions: many prompts at a time, and which of them went without an answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from grpo_lightning.generation.vllm.client import ServerUnavailable, VLLMClient
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
    with ThreadPoolExecutor(min(len(requests), at_a_time)) as threads:
        answers = {threads.submit(complete, client, model, request): request for request in requests}
        try:
            for answer in as_completed(answers):
                try:
                    choices = answer.result()
                except ServerUnavailable as error:
                    unanswered.append(answers[answer])
                    reason = error
                    continue
                for n, token_ids, logprobs, finish_reason in choices:
                    completions.extend(n, token_ids, logprobs, finish_reason)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            client.hang_up()  # the pool is left only once its threads have ended
            raise
    return sorted(unanswered, key=lambda request: request.first), reason


def complete(client: VLLMClient, model: str, request: EngineRequest) -> list[Choice]:
    """The whole answer to one request.

    Raises:
        ServerUnavailable: If there is none, or only a part of one.
    """
    body = {"model": model, "prompt": list(request.prompt_ids), "return_token_ids": True, **request.parameters}
    answer = client.post("/v1/completions", body)
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
