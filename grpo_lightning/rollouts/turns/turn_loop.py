"""The loop between rollouts that wait for a turn and the engine that samples it: no rollout waits for another one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from grpo_lightning.concurrency.event_loop import EventLoopThread
from grpo_lightning.generation.turns import SampledTurn, TurnRequest, TurnSampler

Played = TypeVar("Played")
Ask = Callable[[TurnRequest], Awaitable[SampledTurn]]
"""Asks for a turn of the policy; awaited on the event loop."""


@dataclass(frozen=True)
class _Asked:
    request: TurnRequest
    answer: asyncio.Future[SampledTurn]


@dataclass(frozen=True)
class _Ended:
    rollout: int
    error: BaseException | None


class _Woken:
    """Something else has happened: look again."""


class TurnLoop(Generic[Played]):
    """Runs rollouts as coroutines on an event loop, while the caller's thread samples what they ask for.

    Tools run on the loop and its threads while the engine samples; what comes back goes to the engine with its next step.

    Args:
        loop: Runs the coroutines.
    """

    def __init__(self, loop: EventLoopThread) -> None:
        self._loop = loop
        self._inbox: SimpleQueue[_Asked | _Ended | _Woken] = SimpleQueue()

    def wake(self) -> None:
        """Makes the caller's thread look at the sampler; from any thread."""
        self._inbox.put(_Woken())

    async def ask(self, request: TurnRequest) -> SampledTurn:
        """Waits for a turn of the policy."""
        answer = asyncio.get_running_loop().create_future()
        self._inbox.put(_Asked(request, answer))
        return await answer

    def run(
        self,
        rollouts: Sequence[Coroutine[Any, Any, Played]],
        sampler: TurnSampler,
        on_played: Callable[[int, Played], None],
    ) -> list[Played]:
        """What every rollout gave, in order.

        Args:
            rollouts: Each asks by ``ask``, with its place here as the number of its rollout.
            sampler: Samples; called from this thread alone.
            on_played: Called in this thread as rollouts end.

        Raises:
            Exception: The first that a rollout or the sampler raised; the others are cancelled.
        """
        tasks = [self._start(number, rollout) for number, rollout in enumerate(rollouts)]
        answers: dict[int, asyncio.Future[SampledTurn]] = {}
        open_rollouts = len(tasks)
        try:
            while open_rollouts:
                for event in self._events(waits=not sampler.is_busy):
                    if isinstance(event, _Asked):
                        answers[event.request.rollout] = event.answer
                        sampler.add(event.request)
                    elif isinstance(event, _Ended):
                        if event.error is not None:
                            raise event.error
                        open_rollouts -= 1
                        sampler.ended(event.rollout)
                        on_played(event.rollout, tasks[event.rollout].result())
                if sampler.is_busy:
                    self._give(sampler.step(), answers)
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            sampler.close()

    def _start(self, number: int, rollout: Coroutine[Any, Any, Played]) -> Future[Played]:
        task = self._loop.start(rollout)

        def ended(task: Future[Played]) -> None:
            error = InterruptedError("the rollout was cancelled") if task.cancelled() else task.exception()
            self._inbox.put(_Ended(number, error))

        task.add_done_callback(ended)
        return task

    def _events(self, waits: bool) -> list[_Asked | _Ended | _Woken]:
        """Those that are there; at least one where there is nothing else to do."""
        events = [self._inbox.get()] if waits else []
        while True:
            try:
                events.append(self._inbox.get_nowait())
            except Empty:
                return events

    def _give(self, turns: Sequence[SampledTurn], answers: dict[int, asyncio.Future[SampledTurn]]) -> None:
        def give_all(pairs: list[tuple[asyncio.Future[SampledTurn], SampledTurn]]) -> None:
            for answer, turn in pairs:
                if not answer.done():
                    answer.set_result(turn)

        if turns:
            pairs = [(answers.pop(turn.rollout), turn) for turn in turns]
            self._loop.loop.call_soon_threadsafe(give_all, pairs)
