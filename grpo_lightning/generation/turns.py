"""Sampling for rollouts of several turns: one turn of one rollout at a time, each with a history and a seed of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from grpo_lightning.generation.base import Generator, SamplingSettings


@dataclass(frozen=True)
class TurnRequest:
    """A turn that a rollout asks for."""

    rollout: int
    """Which of the rollouts under way."""
    prompt_ids: list[int]
    """Everything so far: the prompt, the sampled turns as they were sampled, what tools and users said."""
    seed: int
    """In [0, 2**63): of the prompt, the rollout and the turn."""
    limit: int
    """Tokens at most."""


@dataclass(frozen=True)
class SampledTurn:
    """What the policy said."""

    rollout: int
    ids: list[int]
    logprobs: list[float]
    """Nats, at the sampling temperature."""
    truncated: bool
    """Whether it ran into the limit instead of ending."""


class TurnSampler(ABC):
    """Samples turns for many rollouts at a time. All calls come from one thread."""

    @abstractmethod
    def add(self, request: TurnRequest) -> None:
        """Takes a request; its rollout has no other one under way."""

    @abstractmethod
    def ended(self, rollout: int) -> None:
        """The rollout asks for nothing more."""

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether ``step`` has something to do, without a further request."""

    @abstractmethod
    def step(self) -> list[SampledTurn]:
        """Works for a while; turns that have ended since, in any order."""

    @abstractmethod
    def close(self) -> None:
        """Ends what is under way, also after an error."""


class Waves(TurnSampler):
    """Turns by the plain ``generate`` of any generator, a cohort of rollouts at a time.

    Which rollouts are decoded together changes their logprobs by roundings, and a rounding may change a token. So the
    rollouts of a cohort stay together, whatever their tools take: a cohort is decoded once all of its rollouts wait, while
    other cohorts wait for their tools. A run then repeats bit for bit.

    Args:
        generator: Samples.
        sampling: How; the number of completions is 1 here, the limit that of the request.
        rollouts: How many there are.
        cohort: Rollouts in a cohort.
        positions: Tokens that the model takes of a prompt with its completion; None for any number.
    """

    def __init__(
        self, generator: Generator, sampling: SamplingSettings, rollouts: int, cohort: int, positions: int | None
    ) -> None:
        self.generator, self.sampling, self.positions = generator, sampling, positions
        cohorts = [set(range(start, min(start + cohort, rollouts))) for start in range(0, rollouts, cohort)]
        self._alive = dict(enumerate(cohorts))
        self._waiting: dict[int, list[TurnRequest]] = {number: [] for number in self._alive}
        self._cohort = cohort

    def add(self, request: TurnRequest) -> None:
        """See ``TurnSampler.add``."""
        self._waiting[request.rollout // self._cohort].append(request)

    def ended(self, rollout: int) -> None:
        """See ``TurnSampler.ended``."""
        self._alive[rollout // self._cohort].discard(rollout)

    def _ready(self) -> int | None:
        """The first cohort all of whose rollouts wait."""
        for number, alive in self._alive.items():
            if alive and len(self._waiting[number]) == len(alive):
                return number
        return None

    @property
    def is_busy(self) -> bool:
        """Whether a cohort is ready."""
        return self._ready() is not None

    def step(self) -> list[SampledTurn]:
        """One turn of one cohort."""
        number = self._ready()
        assert number is not None, "step was called without a cohort that is ready"
        requests, self._waiting[number] = sorted(self._waiting[number], key=lambda each: each.rollout), []
        return [turn for part in fitting(requests, self.positions) for turn in self._sample(part)]

    def _sample(self, requests: Sequence[TurnRequest]) -> list[SampledTurn]:
        limit = max(request.limit for request in requests)
        sampling = replace(self.sampling, num_generations=1, max_completion_length=limit)
        prompts, seeds = [request.prompt_ids for request in requests], [request.seed for request in requests]
        rollouts = self.generator.generate(prompts, sampling, seeds)
        rows = zip(requests, rollouts.completions(), rollouts.logprob_lists(), rollouts.truncated.tolist(), strict=True)
        return [
            SampledTurn(
                request.rollout,
                ids[: request.limit].tolist(),
                logprobs[: request.limit],
                truncated or len(ids) > request.limit,
            )
            for request, ids, logprobs, truncated in rows
        ]

    def close(self) -> None:
        """Forgets what waits."""
        for waiting in self._waiting.values():
            waiting.clear()


def fitting(requests: Sequence[TurnRequest], positions: int | None) -> list[list[TurnRequest]]:
    """The requests in parts that can be sampled with one limit: the longest prompt with the largest limit fits the model.

    Example:
        >>> short, long = TurnRequest(0, [1] * 10, 0, 90), TurnRequest(1, [1] * 80, 0, 20)
        >>> [len(part) for part in fitting([short, long], 100)], [len(part) for part in fitting([short, long], 200)]
        ([1, 1], [2])
    """
    if positions is None:
        return [list(requests)]
    parts: list[list[TurnRequest]] = []
    for request in requests:
        for part in parts:
            together = [*part, request]
            if max(len(r.prompt_ids) for r in together) + max(r.limit for r in together) <= positions:
                part.append(request)
                break
        else:
            parts.append([request])
    return parts


COHORT = 64
"""Rollouts decoded together by a generator that does not say (max_batch_size)."""


def waits_for_all(generator: Generator) -> bool:
    """Whether turns come in waves, so that rollouts wait for each other's tools and environments."""
    return getattr(generator, "open_turns", None) is None


def open_turns(
    generator: Generator, sampling: SamplingSettings, rollouts: int, positions: int | None, wake: Callable[[], None]
) -> TurnSampler:
    """The generator's own way of sampling turns, by its method ``open_turns``; else waves of its ``generate``.

    Args:
        generator: Started.
        sampling: How to draw.
        rollouts: How many there are.
        positions: Tokens that the model takes.
        wake: Called, from any thread, where ``is_busy`` has become true by itself.
    """
    own: Callable[..., TurnSampler] | None = getattr(generator, "open_turns", None)
    if own is not None:
        return own(sampling, wake)
    return Waves(generator, sampling, rollouts, getattr(generator, "max_batch_size", None) or COHORT, positions)
