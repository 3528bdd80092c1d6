"""From the rewards of a completion to its total: the one place where gates and products are applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

COMPOSITIONS = ("sum", "product", "minimum")


@dataclass(frozen=True)
class RewardComposition:
    """How the rewards of a completion become its total. Each reward is still logged as it was given.

    Args:
        how: ``sum`` of weight times reward (as in TRL), or the ``product`` or ``minimum`` of the rewards whose weight
            is 1; those of weight 0 are only watched.
        gates: Reward -> the reward that opens it. Where the gate is below ``threshold``, the gated reward counts as 0.
        threshold: From which value on a gate is open.

    Example:
        >>> compose = RewardComposition(gates={"accuracy": "format"})  # a right answer in a wrong format earns nothing
        >>> rewards_per_func, weights = compose(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), ("accuracy", "format"), torch.ones(2))
        >>> rewards_per_func.tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """

    how: Literal["sum", "product", "minimum"] = "sum"
    gates: dict[str, str] = field(default_factory=dict)
    threshold: float = 1.0

    def __post_init__(self) -> None:
        if self.how not in COMPOSITIONS:
            raise ValueError(
                f"model.reward_composition.how={self.how!r} is unknown. Choose one of {', '.join(COMPOSITIONS)}."
            )
        if not self.gates and self.threshold != RewardComposition.threshold:
            raise ValueError(
                f"model.reward_composition.threshold={self.threshold} has no effect without gates. Leave it out, or set gates."
            )

    def check(self, names: Sequence[str], weights: Sequence[float]) -> None:
        """Refuses gates and weights that these rewards do not have.

        Raises:
            ValueError: In the words of the config.
        """
        for gated, gate in self.gates.items():
            for name in (gated, gate):
                if name not in names:
                    raise ValueError(
                        f"model.reward_composition.gates names {name!r}, which is not among the rewards "
                        f"{', '.join(names)}."
                    )
            if gate in self.gates:
                raise ValueError(
                    f"model.reward_composition.gates makes {gate!r} both a gate and gated: gates look at rewards as "
                    "they were given, so a chain would not do what it says. Gate both with the first one."
                )
        odd = [f"{name} {weight:g}" for name, weight in zip(names, weights, strict=True) if weight not in (0.0, 1.0)]
        if self.how != "sum" and odd:
            raise ValueError(
                f"model.reward_weights ({', '.join(odd)}) have no meaning with model.reward_composition.how={self.how}. "
                "Use 1, or 0 for a reward that is only watched."
            )

    def __call__(self, rewards_per_func: Tensor, names: Sequence[str], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards and weights whose weighted sum is the total.

        Args:
            rewards_per_func: ``(N, R)``, NaN for None. A gate that is None gates nothing; a product or minimum is over what is
                there.
            names: R names.
            weights: ``(R,)``.

        Returns:
            ``(N, R)`` and ``(R,)`` for a sum; ``(N, 1)`` and ``(1,)`` for a product or minimum.
        """
        gated = rewards_per_func.clone()
        for name, gate in self.gates.items():
            column = names.index(name)
            closed = (rewards_per_func[:, names.index(gate)] < self.threshold) & ~rewards_per_func[:, column].isnan()
            gated[:, column] = gated[:, column].masked_fill(closed, 0.0)
        if self.how == "sum":
            return gated, weights
        counted = gated[:, weights != 0]
        absent = counted.isnan()
        totals = (
            counted.masked_fill(absent, 1.0).prod(dim=1)
            if self.how == "product"
            else counted.masked_fill(absent, torch.inf).amin(dim=1)
        )
        return totals.masked_fill(absent.all(dim=1), torch.nan).unsqueeze(1), weights.new_ones(1)
