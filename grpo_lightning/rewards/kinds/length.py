"""Rewards of the completion's length in tokens: three shapes from the literature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.accuracy import AccuracyReward
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardContractError
from grpo_lightning.rewards.registry import register_reward

SHAPE_SETTINGS = {
    "soft_overlong": ("max_length", "cache_length"),
    "cosine": ("max_length", "correct", "wrong", "exceeded", "accuracy"),
    "target": ("target_length", "width"),
}


def soft_overlong(length: int, max_length: int, cache_length: int) -> float:
    """0 up to ``max_length - cache_length`` tokens, then falling linearly to -1 at ``max_length``; -1 beyond.

    Eq. 13 of DAPO (arXiv:2503.14476).

    Example:
        >>> [soft_overlong(length, max_length=100, cache_length=20) for length in (80, 90, 100, 101)]
        [0.0, -0.5, -1.0, -1.0]
    """
    over = length - (max_length - cache_length)
    return -min(max(over, 0) / cache_length, 1.0) if over > 0 else 0.0


def cosine(length: int, max_length: int, at_zero: float, at_max: float) -> float:
    """From ``at_zero`` for an empty completion to ``at_max`` for ``max_length`` tokens, along half a cosine.

    ``at_max + (at_zero - at_max) * (1 + cos(pi * length / max_length)) / 2``: CosFn of Yeo et al. (arXiv:2502.03373).

    Example:
        >>> [round(cosine(length, 100, at_zero=2.0, at_max=1.0), 3) for length in (0, 25, 50, 100)]
        [2.0, 1.854, 1.5, 1.0]
    """
    return at_max + 0.5 * (at_zero - at_max) * (1.0 + math.cos(math.pi * length / max_length))


def near_target(length: int, target_length: int, width: int) -> float:
    """1 at ``target_length`` tokens, falling linearly to 0 at ``width`` tokens away from it, and 0 beyond.

    Example:
        >>> [near_target(length, target_length=100, width=50) for length in (100, 75, 140, 10)]
        [1.0, 0.5, 0.19999999999999996, 0.0]
    """
    return max(0.0, 1.0 - abs(length - target_length) / width)


@register_reward("length")
@dataclass
class LengthReward(BaseRewardFunction):
    """Rewards the number of completion tokens; range [-1, 0] (soft_overlong), [0, 1] (target), as set (cosine).

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        shape: ``soft_overlong`` (DAPO: 0, then down to -1 near the limit), ``cosine`` (Yeo et al.: short when right,
            long when wrong), ``target`` (a given length).
        max_length: Tokens at which soft_overlong and cosine end. Default: the run's ``model.max_completion_length``.
        cache_length: Tokens before ``max_length`` over which soft_overlong falls. Default: a fifth of ``max_length``,
            as in DAPO (4,096 of 20,480).
        correct: Rewards of a right answer with cosine, at 0 and at ``max_length`` tokens. Default (2, 1), the paper's.
        wrong: The same for a wrong answer. Default (-10, 0), the paper's.
        exceeded: Reward of ``max_length`` tokens or more with cosine. Default -10, the paper's.
        accuracy: What tells right from wrong with cosine. Default: ``AccuracyReward()``.
        target_length: Tokens at which target is 1.
        width: Tokens away from ``target_length`` at which target reaches 0. Default: ``target_length``.
    """

    name: str = "length"
    shape: Literal["soft_overlong", "cosine", "target"] = "soft_overlong"
    max_length: int | None = None
    cache_length: int | None = None
    correct: tuple[float, float] | None = None
    wrong: tuple[float, float] | None = None
    exceeded: float | None = None
    accuracy: AccuracyReward | None = None
    target_length: int | None = None
    width: int | None = None

    scope = "completion"
    batched = True

    def __post_init__(self) -> None:
        if self.shape not in SHAPE_SETTINGS:
            raise ValueError(f"{self.name}: shape={self.shape!r} is unknown. Choose {', '.join(SHAPE_SETTINGS)}.")
        own = SHAPE_SETTINGS[self.shape]
        for setting in {setting for settings in SHAPE_SETTINGS.values() for setting in settings} - set(own):
            if getattr(self, setting) is not None:
                raise ValueError(f"{self.name}: {setting} has no effect with shape={self.shape}, which has {own}.")
        for setting in ("max_length", "cache_length", "target_length", "width"):
            value = getattr(self, setting)
            if value is not None and value < 1:
                raise ValueError(f"{self.name}: {setting}={value} tokens cannot be. Choose 1 or more.")
        if self.shape == "target" and self.target_length is None:
            raise ValueError(f"{self.name}: shape=target needs target_length, in tokens.")
        if self.max_length and self.cache_length and self.cache_length > self.max_length:
            raise ValueError(f"{self.name}: cache_length={self.cache_length} exceeds max_length={self.max_length}.")
        if self.shape == "cosine" and self.accuracy is None:
            self.accuracy = AccuracyReward()

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        completions_ids: list[list[int]] | None = None,
        trainer_state: Any | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One float per completion; with cosine None where there is no verdict on the answer.

        Raises:
            RewardContractError: If the token ids or the length limit are not known.
        """
        if completions_ids is None:
            raise RewardContractError(f"Reward '{self.name}' counts tokens and was called without completions_ids.")
        lengths = [len(ids) for ids in completions_ids]
        if self.shape == "target":
            assert self.target_length is not None  # checked on construction
            return [near_target(length, self.target_length, self.width or self.target_length) for length in lengths]
        limit = self._limit(trainer_state)
        if self.shape == "soft_overlong":
            cache = self.cache_length or max(1, limit // 5)
            return [soft_overlong(length, limit, cache) for length in lengths]
        assert self.accuracy is not None  # made on construction
        verdicts = self.accuracy(prompts, completions, **columns)
        return [self._cosine(length, limit, verdict) for length, verdict in zip(lengths, verdicts, strict=True)]

    def close(self) -> None:
        """Ends the processes of ``accuracy``."""
        if self.accuracy is not None:
            self.accuracy.close()

    def _limit(self, trainer_state: Any) -> int:
        limit = self.max_length or getattr(trainer_state, "max_completion_length", None)
        if limit is None:
            raise RewardContractError(f"Reward '{self.name}' does not know the longest completion: set max_length.")
        return limit

    def _cosine(self, length: int, limit: int, verdict: float | None) -> float | None:
        if verdict is None:
            return None
        if length >= limit:
            return -10.0 if self.exceeded is None else self.exceeded
        at_zero, at_max = (self.correct or (2.0, 1.0)) if verdict else (self.wrong or (-10.0, 0.0))
        return cosine(length, limit, at_zero, at_max)
