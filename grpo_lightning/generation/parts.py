"""Sampling that can be cut: completions go on from where an earlier part left them, and others may be left so again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from grpo_lightning.generation.base import SamplingSettings

PartEnd = Literal["stop", "limit", "cut"]
"""How a part ended: by a token that ends the completion, at its limit, or because enough others had ended."""

OnEnded = Callable[[int], bool]
"""Called with the number of each request that has ended by itself; True has all others cut, soon."""


@dataclass(frozen=True)
class PartRequest:
    """One completion, or what is missing of it."""

    prompt_ids: list[int]
    """The prompt, with the tokens that earlier parts sampled behind it."""
    seed: int
    """In [0, 2**63): of the prompt, the completion and the part."""
    limit: int
    """Tokens at most."""


@dataclass(frozen=True)
class Part:
    """What was sampled for a request; nothing yet where its turn had not come when it was cut."""

    ids: list[int]
    logprobs: list[float]
    """Nats, at the sampling temperature and the weights of the moment."""
    end: PartEnd


@runtime_checkable
class CutsCompletions(Protocol):
    """A generator that can be cut short, and goes on later."""

    def sample_parts(
        self, requests: Sequence[PartRequest], sampling: SamplingSettings, on_ended: OnEnded
    ) -> list[Part]:
        """One part of each request, in their order, from the weights of the last ``update_weights``.

        What is cut depends on how many tokens were sampled, never on the clock.

        Args:
            requests: Neighbours with the same prompt share its computation.
            sampling: How to draw; limits and seeds are those of the requests.
            on_ended: Says when it is enough.
        """
