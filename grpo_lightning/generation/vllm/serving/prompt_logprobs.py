"""What a vLLM server's model would have said at each token of given texts: prompt logprobs of its completions endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from grpo_lightning.generation.vllm.serving.answers import read_as_vllms
from grpo_lightning.generation.vllm.serving.asking import ask_until_answered
from grpo_lightning.generation.vllm.serving.client import ServerNotReadyError, VLLMClient

COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class TokenRow:
    """Tokens of a prompt with those of its completion."""

    token_ids: list[int]
    start: int
    """The place of the completion's first token."""


Places = list[dict[str, dict[str, Any]]]
"""Of each token of a completion, as vLLM writes it: logprobs by token id."""
Answer = TypeVar("Answer")
Told = tuple[list[list[int]], list[list[float]]]
"""Of each token of a completion: the likeliest tokens in its place, likeliest first, and their logprobs in nats."""


class PromptLogprobs:
    """Asks one server, many rows at a time; plain vLLM, which need not have been started for training.

    vLLM computes every row as a whole: rows of one prompt do not share it, since its prefix cache keeps no logprobs.

    Args:
        client: Of the server.
        timeout: Seconds to wait for a server that is not healthy.
        at_a_time: Rows that wait for an answer at the same time.
    """

    def __init__(self, client: VLLMClient, timeout: float, at_a_time: int = 64) -> None:
        self.client, self.timeout, self.at_a_time = client, timeout, at_a_time
        self.model = ""
        """The name that it is served under."""
        self.max_length: int | None = None
        """Tokens of a row, and one more that vLLM generates; None where the server does not say."""

    def start(self) -> None:
        """Waits for the server, and asks what it serves.

        Raises:
            TimeoutError: If it is not healthy in time.
        """
        self.client.open()
        self._wait()
        answer = self.client.call("GET", "/v1/models")
        with read_as_vllms(self.client, "/v1/models", answer):
            card = answer["data"][0]  # adapters come behind
            self.model, self.max_length = card["id"], card.get("max_model_len")

    def _wait(self) -> None:
        try:
            self.client.wait_until_healthy(self.timeout)
        except ServerNotReadyError as error:
            raise ServerNotReadyError(
                f"no healthy vLLM server at {self.client.address} within {self.timeout:.0f} s (model.distillation.timeout), "
                "where model.distillation.teacher says it is. Start one with: python -m grpo_lightning serve --model TEACHER "
                f"--port {self.client.port}."
            ) from error

    def text_of(self, token_ids: Sequence[int]) -> str:
        """What the tokens mean to the server."""
        answer = self.client.post("/detokenize", {"model": self.model, "tokens": list(token_ids)})
        with read_as_vllms(self.client, "/detokenize", answer):
            return str(answer["prompt"])

    def likeliest(self, rows: Sequence[TokenRow], top_k: int) -> list[Told]:
        """The ``top_k`` likeliest tokens at each completion token of the rows, at temperature 1.

        A server that is lost is waited for, and asked for what it has not answered.

        Args:
            rows: At least one token before each completion.
            top_k: How many.

        Raises:
            ServerRefused: If the server is well and does not answer.
            ServerUnavailable: If it is healthy and answers nothing, three times in a row.
            TimeoutError: If it was lost and did not come back in time.
        """
        return self._answers(rows, top_k, lambda row, places: likeliest_of(places, top_k))

    def of_tokens(self, rows: Sequence[TokenRow]) -> list[list[float]]:
        """Nats of the completion tokens of the rows themselves, at temperature 1.

        Args:
            rows: See ``likeliest``, and there what is raised.
        """
        return self._answers(rows, 0, lambda row, places: of_these(places, row.token_ids[row.start :]))

    def _answers(
        self, rows: Sequence[TokenRow], top_k: int, read: Callable[[TokenRow, Places], Answer]
    ) -> list[Answer]:
        """What ``read`` makes of each answer as it comes: as vLLM writes them, those of a step would fill the memory."""
        slots = asyncio.Semaphore(self.at_a_time)
        answers: dict[int, Answer] = {}

        async def ask(n: int) -> Answer:
            answer = await self._answer(rows[n], top_k, slots)
            with read_as_vllms(self.client, COMPLETIONS, answer):
                return read(rows[n], answer["choices"][0]["prompt_logprobs"][rows[n].start :])

        ask_until_answered(self.client, range(len(rows)), ask, answers.__setitem__, lambda _: self._wait())
        return [answers[n] for n in range(len(rows))]

    async def _answer(self, row: TokenRow, top_k: int, slots: asyncio.Semaphore) -> Any:
        body: dict[str, Any] = {"model": self.model, "prompt": row.token_ids, "prompt_logprobs": top_k, "max_tokens": 1}
        async with slots:
            return await self.client.send("POST", COMPLETIONS, body)


def of_these(places: Places, token_ids: Sequence[int]) -> list[float]:
    """Of the tokens that stand there, which vLLM tells always.

    Example:
        >>> of_these([{"7": {"logprob": -9.0}, "5": {"logprob": -0.1}}], [7])
        [-9.0]
    """
    return [float(place[str(token)]["logprob"]) for place, token in zip(places, token_ids, strict=True)]


def likeliest_of(places: Places, top_k: int) -> Told:
    """Without the tokens that stand there, which vLLM adds where they are not among the likeliest.

    Example:
        >>> likeliest_of([{"7": {"logprob": -9.0}, "5": {"logprob": -0.1}, "6": {"logprob": -3.0}}], 2)
        ([[5, 6]], [[-0.1, -3.0]])
    """
    chosen = [
        sorted(((entry["logprob"], int(token)) for token, entry in place.items()), key=lambda pair: -pair[0])[:top_k]
        for place in places
    ]
    return [[token for _, token in of_one] for of_one in chosen], [[value for value, _ in of_one] for of_one in chosen]
