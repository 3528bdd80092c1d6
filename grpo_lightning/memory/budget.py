"""How many tokens a micro-batch may have: chosen from what a few passes took and what is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LARGEST_BUDGET = 16384
"""Tokens that "auto" does not exceed for a large model."""
SMALL_MODEL_BUDGET = 65536
"""The same for models whose passes over so few tokens take a GPU less time than its host takes to launch their kernels."""
PASS_WORK = 2e14
"""Floating-point operations of a pass that is worth its launch: a third of a second of a GPU, where a host takes half of it."""
BUDGET_STEP = 1024
"""A budget is a multiple of this, so that a little more or less free memory does not change how sums are rounded."""
SAFETY_SHARE = 0.05
"""Of the device's memory, left free by "auto": fragments, and what libraries allocate later."""
GIB = 2**30


def largest_budget(parameters: int) -> int:
    """Tokens that "auto" does not exceed for a model of so many parameters, at 6 operations per parameter and token.

    Example:
        >>> largest_budget(7_000_000_000), largest_budget(1_500_000_000), largest_budget(490_000_000)
        (16384, 21504, 65536)
    """
    worth = int(PASS_WORK / (6 * parameters)) // BUDGET_STEP * BUDGET_STEP
    return max(LARGEST_BUDGET, min(worth, SMALL_MODEL_BUDGET))


def check_budget(budget: int | str) -> None:
    """Refuses a setting that holds no token.

    Raises:
        ValueError: Naming it.
    """
    if budget != "auto" and (isinstance(budget, str) or budget < 1):
        raise ValueError(
            f"model.max_tokens_per_microbatch={budget} holds no token. Use a number such as 8192, or auto."
        )


@dataclass(frozen=True)
class PassMemory:
    """What one training pass was measured to need."""

    tokens: int
    """In the layout of the pass, see ``packing.count_tokens``."""
    bytes: int
    """The most that was in use during the pass, gradients included, less what was in use before it."""


@dataclass(frozen=True)
class MemoryLine:
    """Memory of a pass as a straight line: ``fixed + per_token * tokens`` bytes.

    Packed attention and the head both keep as much for each token, however many; beyond the logits that a GPU keeps
    (``logprobs.KEPT_SHARE``) the head keeps less, and the line asks for more than is needed.
    """

    fixed: float
    per_token: float

    @classmethod
    def through(cls, small: PassMemory, large: PassMemory) -> MemoryLine:
        """The line through two measurements; a constant where they are equal in size.

        Example:
            >>> MemoryLine.through(PassMemory(1000, 5_000), PassMemory(3000, 9_000))
            MemoryLine(fixed=3000.0, per_token=2.0)
        """
        if large.tokens == small.tokens:
            return cls(float(large.bytes), 0.0)
        slope = max(0.0, (large.bytes - small.bytes) / (large.tokens - small.tokens))
        return cls(large.bytes - slope * large.tokens, slope)

    def at(self, tokens: int) -> int:
        """Bytes of a pass over so many tokens."""
        return round(self.fixed + self.per_token * tokens)

    def tokens_in(self, available: int) -> int:
        """The most tokens whose pass fits into so many bytes; may be negative."""
        room = available - self.fixed
        if self.per_token == 0:
            return SMALL_MODEL_BUDGET if room >= 0 else 0
        return int(room // self.per_token)


@dataclass(frozen=True)
class DeviceState:
    """Memory of one rank's device before the first training pass, in bytes."""

    total: int
    free: int
    """What new tensors can take: with weights, reference and generator there, and no gradient."""
    optimizer: int
    """What the optimizer will keep from its first step on and does not have yet."""

    @property
    def for_passes(self) -> int:
        """What is left for gradients and activations."""
        return self.free - self.optimizer


def choose_budget(line: MemoryLine, state: DeviceState, longest: int, largest: int) -> int:
    """``model.max_tokens_per_microbatch`` for "auto" on one rank.

    Args:
        line: Of this rank's passes.
        state: Of its device.
        longest: Tokens of the longest completion with its prompt: a micro-batch holds at least one.
        largest: What the model has no use for more than, see ``largest_budget``.

    Returns:
        The largest multiple of ``BUDGET_STEP``, up to ``largest``, whose pass leaves ``SAFETY_SHARE`` of the
        memory free; ``longest`` where that is more, whether it fits or not.

    Example:
        >>> line = MemoryLine(fixed=2.0 * GIB, per_token=2.0**20)
        >>> choose_budget(line, DeviceState(total=40 * GIB, free=16 * GIB, optimizer=4 * GIB), longest=1000, largest=16384)
        8192
    """
    fitting = line.tokens_in(state.for_passes - round(SAFETY_SHARE * state.total))
    budget = min(fitting, largest) // BUDGET_STEP * BUDGET_STEP
    return max(budget, longest)


def smaller_budget(budget: int, longest: int) -> int | None:
    """Half of a budget that turned out not to fit; None where that would hold no longest completion.

    Example:
        >>> smaller_budget(7168, 600), smaller_budget(1024, 600), smaller_budget(600, 600)
        (3072, 600, None)
    """
    if budget <= longest:
        return None
    half = budget // 2
    return max(half // BUDGET_STEP * BUDGET_STEP if half >= BUDGET_STEP else half, longest)


@dataclass(frozen=True)
class MemoryPlan:
    """What the start of training found, for the plan that is printed and for errors."""

    budget: int
    """``model.max_tokens_per_microbatch`` from now on."""
    needed: PassMemory
    """Of the largest pass: the worst shape at this budget, of the rank that needs most."""
    state: DeviceState
    """Of the rank with the least room."""

    def __str__(self) -> str:
        total, room = self.needed.bytes + self.state.optimizer, self.state.free / GIB
        return (
            f"Measured: gradients and activations of {self.needed.tokens:,} tokens take up to "
            f"{self.needed.bytes / GIB:.2f} GiB, with optimizer states still to come {total / GIB:.2f} GiB of "
            f"{room:.2f} GiB free."
        )


def least_room(states: Sequence[DeviceState]) -> DeviceState:
    """Of the ranks' devices the one with the least left for passes."""
    return min(states, key=lambda state: state.for_passes)


def does_not_fit(tokens: int, needed: int | None, state: DeviceState, changes: Sequence[str]) -> str:
    """The error for a micro-batch that does not fit.

    Args:
        tokens: Of the micro-batch.
        needed: Bytes of its pass, as far as known from smaller ones.
        state: Of the rank with the least room.
        changes: What the user may do about it, in the words of the config.
    """
    takes = "more" if needed is None else f"about {(needed + state.optimizer) / GIB:.2f} GiB"
    return (
        f"A micro-batch of {tokens:,} tokens does not fit into memory. Gradients, activations and "
        f"{state.optimizer / GIB:.2f} GiB of optimizer states take {takes}; {state.free / GIB:.2f} of "
        f"{state.total / GIB:.2f} GiB are free beside weights, reference and generator. "
        f"Any of these helps: {'; '.join(changes)}."
    )
