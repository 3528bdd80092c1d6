"""Turns of many rollouts from a vLLM server: each is a request of its own, sent when it is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.turns import SampledTurn, TurnRequest, TurnSampler
from grpo_lightning.generation.vllm.requests.completions import Completions, sampled_turn
from grpo_lightning.generation.vllm.requests.prompts import EngineRequest, single_request
from grpo_lightning.generation.vllm.serving.asking import ATTEMPTS
from grpo_lightning.generation.vllm.serving.client import ServerUnavailable, VLLMClient, result_of
from grpo_lightning.generation.vllm.serving.completing import Choice, complete, constrain
from grpo_lightning.generation.vllm.serving.endpoints import Endpoint

logger = logging.getLogger(__name__)


class ServerTurns(TurnSampler):
    """Sends requests, and sends those again that a lost server did not answer.

    Args:
        client: Of the server.
        endpoint: Its for prompts without pictures.
        model: The name that it serves the policy, or its adapter, under.
        sampling: How to draw.
        eos_ids: Tokens that end a turn.
        at_a_time: Requests that wait for an answer at the same time.
        recover: Called in the caller's thread with the last reason: waits for the server and gives it the weights again.
        wake: Called where an answer is there.
    """

    def __init__(
        self,
        client: VLLMClient,
        endpoint: Endpoint,
        model: str,
        sampling: SamplingSettings,
        eos_ids: frozenset[int],
        at_a_time: int,
        recover: Callable[[ServerUnavailable], None],
        wake: Callable[[], None],
    ) -> None:
        self.client, self.endpoint, self.model = client, endpoint, model
        self.sampling, self.eos_ids = sampling, eos_ids
        self.recover, self.wake = recover, wake
        self._slots = asyncio.Semaphore(at_a_time)
        self._answered: SimpleQueue[tuple[int, EngineRequest, Future[list[Choice]]]] = SimpleQueue()
        self._waiting: set[Future[list[Choice]]] = set()
        self._unanswered: list[tuple[int, EngineRequest]] = []
        self._reason: ServerUnavailable | None = None
        self._losses = 0

    def add(self, request: TurnRequest) -> None:
        """See ``TurnSampler.add``."""
        one = single_request(request, self.sampling, self.eos_ids)
        constrain([one], self.sampling)
        self._send(request.rollout, one)

    def _send(self, rollout: int, request: EngineRequest) -> None:
        answer = self.client.start(complete(self.client, self.endpoint, self.model, request, self._slots))
        self._waiting.add(answer)

        def answered(answer: Future[list[Choice]]) -> None:
            self._answered.put((rollout, request, answer))
            self.wake()

        answer.add_done_callback(answered)

    def ended(self, rollout: int) -> None:
        """Nothing: no rollout waits for another one."""

    @property
    def is_busy(self) -> bool:
        """Whether answers are there, or requests have to be sent again."""
        return not self._answered.empty() or (bool(self._unanswered) and not self._waiting)

    def step(self) -> list[SampledTurn]:
        """The answers that are there; a lost server is waited for once no request is under way."""
        turns = []
        while True:
            try:
                rollout, request, answer = self._answered.get_nowait()
            except Empty:
                break
            self._waiting.discard(answer)
            try:
                [(_, ids, logprobs, finish_reason)] = result_of(answer)
            except ServerUnavailable as error:
                self._unanswered.append((rollout, request))
                self._reason = error
                continue
            completions = Completions(1, 1)
            completions.extend(0, ids, logprobs, finish_reason)
            turns.append(sampled_turn(rollout, completions))
            self._losses = 0
        if self._unanswered and not self._waiting:
            self._send_again()
        return turns

    def _send_again(self) -> None:
        assert self._reason is not None
        self._losses += 1
        if self._losses > ATTEMPTS:
            raise self._reason
        if self._losses == 1:
            logger.warning("The vLLM server left turns unanswered (%s).", self._reason)
        self.client.pause(self._losses)
        self.recover(self._reason)
        again, self._unanswered = sorted(self._unanswered, key=lambda pair: pair[0]), []
        for rollout, request in again:
            self._send(rollout, request)

    def close(self) -> None:
        """Ends the requests under way; the server forgets them."""
        for answer in self._waiting:
            answer.cancel()
