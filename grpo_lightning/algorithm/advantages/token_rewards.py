"""Rewards of single tokens and turns: where in a completion the entries of a reward's list belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.types import Rollouts

RewardLists = Mapping[str, Sequence[Sequence[float] | None]]
"""Reward -> N entries: the list that it gave for a completion (NaN for None in it), or None where it gave one number."""


@dataclass(frozen=True)
class CompletionTokens:
    """How long N completions are, T tokens in all, and what rewards say of single tokens. On the CPU."""

    lengths: Tensor
    """(N,) int64: tokens that the policy chose."""
    sizes: Tensor
    """(N,) int64: all tokens, those of tools too."""
    rewards: Tensor | None = None
    """(T,) float64: weighted totals at the tokens that rewards speak of, NaN elsewhere; None for one number each."""

    @classmethod
    def single(cls, count: int) -> CompletionTokens:
        """``count`` completions of one token."""
        ones = torch.ones(count, dtype=torch.int64)
        return cls(ones, ones)

    @classmethod
    def of(
        cls, rollouts: Rollouts, rewards_per_func: Tensor, names: Sequence[str], weights: Tensor, lists: RewardLists
    ) -> CompletionTokens:
        """Of a rank's rollouts and rewards.

        Args:
            rollouts: N completions.
            rewards_per_func: ``(N, R)``: one number of each reward, for a list its sum; NaN for None.
            names: R names.
            weights: ``(R,)``.
            lists: Where rewards gave lists; those of weight 0, which are only watched, count for nothing.

        Raises:
            ValueError: If a list has neither an entry per token nor one per turn.
        """
        placed = None
        counted = [r for r in range(len(names)) if weights[r] != 0]
        if any(names[r] in lists for r in counted):
            masks = rollouts.completion_mask.split(rollouts.completion_lengths.tolist())
            parts = [torch.full((len(mask),), torch.nan, dtype=torch.float64) for mask in masks]
            for n, (mask, part) in enumerate(zip(masks, parts, strict=True)):
                for r in counted:
                    name = names[r]
                    entries = lists.get(name, [None] * len(parts))[n]
                    one = [float(rewards_per_func[n, r])] if entries is None else entries
                    _add(
                        part,
                        mask,
                        one,
                        float(weights[r]),
                        f"Reward '{name}' returned {len(one)} values for completion {n}",
                    )
            placed = torch.cat(parts)
        return cls(rollouts.policy_lengths(), rollouts.completion_lengths, placed)

    @classmethod
    def joined(cls, parts: Sequence[CompletionTokens], totals: Sequence[Tensor]) -> CompletionTokens:
        """Those of all ranks, end to end; a rank without lists has its ``(n,)`` totals at the last tokens."""
        rewards = None
        if any(part.rewards is not None for part in parts):
            rewards = torch.cat([part._placed(total) for part, total in zip(parts, totals, strict=True)])
        return cls(torch.cat([p.lengths for p in parts]), torch.cat([p.sizes for p in parts]), rewards)

    def split(self, advantages: Tensor, ranks: Sequence[CompletionTokens]) -> tuple[Tensor, ...]:
        """Those of each rank, from (N,) or (T,) of all."""
        by_token = advantages.shape != self.sizes.shape
        return advantages.split([int(rank.sizes.sum()) if by_token else len(rank.sizes) for rank in ranks])

    def _placed(self, totals: Tensor) -> Tensor:
        if self.rewards is not None:
            return self.rewards
        empty = torch.full((int(self.sizes.sum()),), torch.nan, dtype=torch.float64)
        return empty.index_copy(0, self.sizes.cumsum(0) - 1, totals.double())


def turn_ends(mask: Tensor) -> Tensor:
    """1-D int64: the last token of each turn of the policy, a run of True.

    Example:
        >>> turn_ends(torch.tensor([True, True, False, True])).tolist()
        [1, 3]
    """
    following = torch.cat([mask[1:], torch.zeros(1, dtype=torch.bool)])
    return (mask & ~following).nonzero()[:, 0]


def _add(totals: Tensor, mask: Tensor, entries: Sequence[float], weight: float, whose: str) -> None:
    """Adds the entries times ``weight`` where they belong: at every token, at turns' ends, or one at the last token."""
    ends = turn_ends(mask)
    places = torch.arange(len(mask)) if len(entries) == len(mask) else ends
    if len(entries) == 1:
        places = torch.tensor([len(mask) - 1])
    if len(entries) != len(places):
        raise ValueError(
            f"{whose}, which has {len(mask)} tokens and {len(ends)} turns. Return one value per token "
            "(as many as completion_ids), one per turn of the policy, or a single number."
        )
    values = torch.tensor(entries, dtype=torch.float64) * weight
    known = places[~values.isnan()]
    totals[known] = totals[known].nan_to_num(nan=0.0) + values[~values.isnan()]
