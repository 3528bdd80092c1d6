"""Pools of prompts that teach nothing at the moment: whose turn it is, and who moves."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.datamodules.curriculum import EASY, HARD, OPEN, POOLS, Curriculum
from grpo_lightning.datamodules.drawing.places import epoch_permutation
from grpo_lightning.datamodules.drawing.quotas import Quotas

FILL_ORDER = (OPEN, HARD, EASY)
"""Of a step whose pools cannot give their shares: a hard prompt may have become possible."""


class Pools:
    """Where each prompt of a dataset is, and whose turn it is; a function of the seed and of what was recorded.

    Inside a pool, prompts take turns in an order that is shuffled anew each time round.

    Args:
        num_prompts: Of the dataset.
        settings: Shares and limits.
        seed: Of the orders.
        shuffle: False keeps the dataset's order.
    """

    def __init__(self, num_prompts: int, settings: Curriculum, seed: int, shuffle: bool = True) -> None:
        self.settings, self.seed, self.shuffle = settings, seed, shuffle
        self.pool = torch.zeros(num_prompts, dtype=torch.int8)
        """(num_prompts,): index into ``POOLS``."""
        self.turn = torch.zeros(num_prompts, dtype=torch.int32)
        """(num_prompts,): how often each has been drawn, or how often its pool has by the time it came there."""
        shares = [Fraction(str(share)) for share in (settings.easy_share, settings.hard_share)]
        self._quotas = Quotas([1 - sum(shares), *shares])
        self._orders: dict[int, Tensor] = {}  # turn -> place of each prompt in the order of that turn

    def draw(self, count: int) -> list[int]:
        """The next so many prompts, all different: shares of the pools, then whoever is left to fill the step."""
        wanted = self._quotas.next(count)
        sizes = torch.bincount(self.pool.long(), minlength=len(POOLS)).tolist()
        given = [min(one, size) for one, size in zip(wanted, sizes, strict=True)]
        for pool in FILL_ORDER:
            given[pool] += min(count - sum(given), sizes[pool] - given[pool])
        chosen = torch.cat([self._next_of(pool, given[pool]) for pool in range(len(POOLS))])
        self.turn[chosen] += 1
        return chosen.tolist()

    def _next_of(self, pool: int, count: int) -> Tensor:
        members = (self.pool == pool).nonzero()[:, 0]
        if not count:
            return members[:0]
        turns = self.turn[members].long()
        keys = turns * len(self.pool)
        for turn in turns.unique().tolist():
            of_turn = turns == turn
            keys[of_turn] += self._order(turn)[members[of_turn]]
        return members[keys.topk(count, largest=False, sorted=True).indices]

    def _order(self, turn: int) -> Tensor:
        if turn not in self._orders:
            if len(self._orders) > len(POOLS):
                self._orders.clear()
            self._orders[turn] = epoch_permutation(len(self.pool), self.seed, turn, self.shuffle).argsort()
        return self._orders[turn]

    def move(self, place: int, pool: int) -> None:
        """Puts a prompt into a pool; there, it waits with the others for their turn."""
        if self.pool[place] == pool:
            return
        members = self.turn[self.pool == pool]
        if len(members):  # not several times in a row, to catch up with those that were drawn while it waited
            self.turn[place] = torch.maximum(self.turn[place], members.min())
        self.pool[place] = pool

    def shares(self) -> Tensor:
        """(3,) float64: the share of prompts in each of ``POOLS``."""
        return torch.bincount(self.pool.long(), minlength=len(POOLS)).double() / len(self.pool)

    def state_dict(self) -> dict[str, Any]:
        """Pools and turns."""
        return {"pool": self.pool.clone(), "turn": self.turn.clone(), "given": list(self._quotas.given)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with saved pools; shares and limits may have changed."""
        self.pool, self.turn = state["pool"].clone(), state["turn"].clone()
        self._quotas.given = list(state["given"])
