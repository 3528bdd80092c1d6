"""Does the completion repeat itself?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lightning.rewards.base import RewardContractError
from grpo_lightning.rewards.completion_reward import CompletionReward
from grpo_lightning.rewards.registry import register_reward


def repeated_share(items: Sequence[Hashable], ngram_size: int) -> float:
    """Share of n-grams that have occurred before: 1 - distinct / all; 0 with fewer than one n-gram.

    Example:
        >>> repeated_share("a b a b a b".split(), ngram_size=2)  # ab ba ab ba ab: 2 distinct of 5
        0.6
    """
    total = len(items) - ngram_size + 1
    if total < 1:
        return 0.0
    distinct = len(set(zip(*(items[start : start + total] for start in range(ngram_size)), strict=True)))
    return 1.0 - distinct / total


@register_reward("repetition")
@dataclass
class RepetitionReward(CompletionReward):
    """0 where no n-gram occurs twice, down to ``max_penalty`` where all are the same; range [max_penalty, 0].

    The n-gram penalty of Yeo et al. (arXiv:2502.03373), as a share of all n-grams of the completion.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        ngram_size: Units in one n-gram.
        max_penalty: Reward of a completion that only repeats itself; 0 or less.
        unit: ``words`` (separated by white space, case ignored) or ``tokens`` (for languages without spaces).

    Example:
        >>> reward = RepetitionReward(ngram_size=2)
        >>> reward(prompts=["p"] * 2, completions=["the cat sat on the mat", "no no no no no"])
        [0.0, -0.75]
    """

    name: str = "repetition"
    ngram_size: int = 3
    max_penalty: float = -1.0
    unit: Literal["words", "tokens"] = "words"

    def __post_init__(self) -> None:
        if self.ngram_size < 1 or self.max_penalty > 0:
            raise ValueError(
                f"{self.name}: ngram_size={self.ngram_size} must be 1 or more, max_penalty={self.max_penalty} 0 or less."
            )
        if self.unit not in ("words", "tokens"):
            raise ValueError(f"{self.name}: unit={self.unit!r} is unknown. Choose words or tokens.")

    def score(self, completion: str, **row: Any) -> float:
        """0 or less."""
        if self.unit == "words":
            share = repeated_share(completion.casefold().split(), self.ngram_size)
        elif row["completion_ids"] is None:
            raise RewardContractError(f"Reward '{self.name}' counts tokens and was called without completions_ids.")
        else:
            share = repeated_share(row["completion_ids"], self.ngram_size)
        return share * self.max_penalty if share else 0.0
