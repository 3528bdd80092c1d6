"""Many questions to a vLLM server at a time, and again those that it left unanswered when it was lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import as_completed
from typing import Any, TypeVar

from grpo_lightning.generation.vllm.serving.client import ServerUnavailable, VLLMClient, result_of

logger = logging.getLogger(__name__)

Question = TypeVar("Question")
Answer = TypeVar("Answer")
ATTEMPTS = 3
"""Losses of the server in a row, without an answer between them, after which it is given up."""


def ask_until_answered(
    client: VLLMClient,
    questions: Sequence[Question],
    ask: Callable[[Question], Coroutine[Any, Any, Answer]],
    take: Callable[[Question, Answer], None],
    recover: Callable[[ServerUnavailable], None],
) -> None:
    """Returns when every question has its answer.

    Args:
        client: Of the server.
        questions: All at once.
        ask: Awaits the answer to one, on the client's loop.
        take: Called with each answer as it comes, from this thread.
        recover: Called with the last reason where some are without one: makes the server ready to be asked again.

    Raises:
        ServerUnavailable: If nothing was answered three times in a row.
    """
    waiting, losses = list(questions), 0
    while waiting:
        unanswered, reason = _ask_once(client, waiting, ask, take)
        losses = losses + 1 if len(unanswered) == len(waiting) else 0
        if reason is not None:
            if losses == ATTEMPTS:
                raise reason
            if losses <= 1:
                logger.warning("%s left %d requests unanswered (%s).", client.address, len(unanswered), reason)
            client.pause(losses)
            recover(reason)
        waiting = unanswered


def _ask_once(
    client: VLLMClient,
    questions: Sequence[Question],
    ask: Callable[[Question], Coroutine[Any, Any, Answer]],
    take: Callable[[Question, Answer], None],
) -> tuple[list[Question], ServerUnavailable | None]:
    """The questions without an answer, in order, and why the last of them has none."""
    calls = {client.start(ask(question)): question for question in questions}
    lost, reason = set(), None
    try:
        for call in as_completed(calls):
            try:
                answer = result_of(call)
            except ServerUnavailable as error:
                lost.add(call)
                reason = error
                continue
            take(calls[call], answer)
    except BaseException:  # Ctrl-C, for example
        for call in calls:
            call.cancel()
        raise
    return [question for call, question in calls.items() if call in lost], reason
