"""Answers of a server that are not what vLLM says: of another program, another version, or a proxy's page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grpo_lightning.generation.vllm.serving.client import ServerRefused, VLLMClient

SHOWN = 300
"""Characters of an answer in an error."""


@contextmanager
def read_as_vllms(client: VLLMClient, path: str, answer: Any) -> Iterator[None]:
    """Around what takes an answer apart, and calls nothing else.

    Args:
        client: Of the server.
        path: Where it was asked.
        answer: Decoded; with status 200.

    Raises:
        ServerRefused: With the answer, where a part of it is not there or is something else.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        text = repr(answer)
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise ServerRefused(
            f"{client.address}{path} answered with {shown}, which is not what vLLM answers ({type(error).__name__}: {error}). "
            "Another program, a proxy or another version of vLLM may listen there: start the server with python -m "
            f"grpo_lightning serve. {client.where_to_look()}"
        ) from error
