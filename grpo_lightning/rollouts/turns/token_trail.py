"""The tokens of one rollout of several turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from grpo_lightning.generation.turns import SampledTurn


@dataclass
class TokenTrail:
    """The tokens of a rollout, in order, and whose they are."""

    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    """Behind the prompt, of all histories one after the other."""
    logprobs: list[float] = field(default_factory=list)
    """Nats; 0 for a token that is not the policy's."""
    mask: list[bool] = field(default_factory=list)
    """True for the policy's."""
    histories: list[tuple[int, int]] = field(default_factory=list)
    """Of each history but the first: how many tokens of the prompt it begins with, and where in ``ids`` it goes on."""

    @property
    def context(self) -> list[int]:
        """What the policy reads now."""
        kept, start = self.histories[-1] if self.histories else (len(self.prompt_ids), 0)
        return self.prompt_ids[:kept] + self.ids[start:]

    def add_sampled(self, turn: SampledTurn) -> None:
        """A turn of the policy, for ever as it was sampled."""
        self._add(turn.ids, turn.logprobs, True)

    def add_given(self, ids: Sequence[int]) -> None:
        """What a tool, the environment or the template said."""
        self._add(ids, [0.0] * len(ids), False)

    def begin_history(self, kept: int, ids: Sequence[int]) -> None:
        """Goes on from another history: ``kept`` tokens of the prompt, then tokens that are not the policy's."""
        self.histories.append((kept, len(self.ids)))
        self.add_given(ids)

    def room(self, limit: int, context: int | None) -> int:
        """Tokens that the rollout may still have.

        Args:
            limit: Of a completion.
            context: Tokens that the model or its engine takes at once; None for any number.
        """
        room = limit - len(self.ids)
        return room if context is None else min(room, context - len(self.context))

    def branches(self, start: int) -> list[tuple[int, int]]:
        """``Conversation.branches`` behind a prompt of the group of ``start`` tokens; empty for a single history."""
        if not self.histories:
            return []
        # What the environment said to this rollout alone belongs to its completion.
        return [(min(kept, start), max(kept - start, 0) + end - begin) for kept, begin, end in self._spans()]

    def row(self, start: int) -> tuple[list[int], list[float], list[bool]]:
        """Tokens, logprobs and mask behind the first ``start`` tokens of the prompt, as ``branches`` divides them."""
        ids, logprobs, mask = list[int](), list[float](), list[bool]()
        for kept, begin, end in self._spans():
            said = self.prompt_ids[start:kept]
            ids += [*said, *self.ids[begin:end]]
            logprobs += [0.0] * len(said) + self.logprobs[begin:end]
            mask += [False] * len(said) + self.mask[begin:end]
        return ids, logprobs, mask

    def _spans(self) -> list[tuple[int, int, int]]:
        """Of each history: tokens of the prompt that it begins with, and where its own lie in ``ids``."""
        begins = [(len(self.prompt_ids), 0), *self.histories]
        ends = [begin for _, begin in self.histories] + [len(self.ids)]
        return [(kept, begin, end) for (kept, begin), end in zip(begins, ends, strict=True)]

    def _add(self, ids: Sequence[int], logprobs: Sequence[float], is_sampled: bool) -> None:
        self.ids.extend(ids)
        self.logprobs.extend(logprobs)
        self.mask.extend([is_sampled] * len(ids))
