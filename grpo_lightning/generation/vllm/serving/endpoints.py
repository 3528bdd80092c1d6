"""The two endpoints of a vLLM server that complete prompts of tokens, and what each wants to be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grpo_lightning.generation.vllm.requests.prompts import EngineRequest
from grpo_lightning.generation.vllm.serving.client import ServerRefused, ServerUnavailable, VLLMClient

FINAL_ONLY = 2
"""vLLM's ``RequestOutputKind`` of completions that are handed over when they have ended."""
LOWEST_LOGPROB = -9999.0
"""What the endpoints put in the place of a lower logprob, and ``TOKENS`` in that of NaN. No token that was drawn has it."""


@dataclass(frozen=True)
class Endpoint:
    """Where a request goes."""

    path: str
    body: Callable[[EngineRequest], dict[str, Any]]
    """Of its call, but for the model."""


def _as_text(request: EngineRequest) -> dict[str, Any]:
    return {"prompt": list(request.prompt_ids), "return_token_ids": True, **request.parameters}


def _as_tokens(request: EngineRequest) -> dict[str, Any]:
    unread = {"detokenize": bool(request.parameters.get("stop")), "flat_logprobs": True, "output_kind": FINAL_ONLY}
    prompt = request.rendered or {"token_ids": list(request.prompt_ids)}
    return {**prompt, "return_token_ids": True, "sampling_params": request.parameters | unread}


TEXT = Endpoint("/v1/completions", _as_text)
"""Every server has it. It spells each token out for its answer, and again for its logprob."""
TOKENS = Endpoint("/inference/v1/generate", _as_tokens)
"""Tokens in, tokens out: a third of the server's work. Takes pictures too."""


def sampling_endpoint(client: VLLMClient, model: str) -> Endpoint:
    """``TOKENS`` where a server answers there as it should, tried with one token; else ``TEXT``.

    Args:
        client: Of a server that is healthy.
        model: The name that it serves the policy under.

    Raises:
        ServerUnavailable: If the server was lost meanwhile.
    """
    tried = EngineRequest(0, [0], {"n": 1, "max_tokens": 1, "logprobs": 0})
    try:
        (choice,) = client.post(TOKENS.path, {"model": model} | TOKENS.body(tried))["choices"]
        is_known = len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == 1
    except (ServerRefused, KeyError, TypeError, ValueError):  # not there, switched off, or another version's
        return TEXT
    except ServerUnavailable:
        if client.is_healthy():  # a proxy's answer to a path that it does not know
            return TEXT
        raise
    return TOKENS if is_known else TEXT
