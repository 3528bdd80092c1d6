"""Entropy in the objective: which tokens are the uncertain ones, and a bonus whose size follows a target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@torch.no_grad()
def entropy_threshold(entropies: Tensor, top_entropy_quantile: float) -> Tensor:
    """Scalar: the entropy that a token must reach to be among the top share.

    "Beyond the 80/20 Rule" (arXiv:2506.01939). The ``1 - top_entropy_quantile`` quantile in float32, linearly
    interpolated: the value of ``torch.quantile``, which refuses more than 16 million entries.

    Args:
        entropies: 1-D, nats: all tokens with a True mask of the optimizer step, over all ranks.
        top_entropy_quantile: Share to keep, in [0, 1]; 0 keeps the highest only.
    """
    if entropies.numel() == 0:
        return torch.zeros((), device=entropies.device)
    ordered = entropies.float().sort().values
    rank = torch.tensor(1.0 - top_entropy_quantile, dtype=torch.float32) * (ordered.numel() - 1)
    below = int(rank.floor())
    return torch.lerp(ordered[below], ordered[int(rank.ceil())], float(rank - below))


@torch.no_grad()
def high_entropy_mask(entropies: Tensor, threshold: Tensor, mask: Tensor) -> Tensor:
    """``(T,)`` bool: True for masked tokens whose entropy is at least the threshold."""
    # In the threshold's own float32: in float64 the token that sets the threshold could fall below its rounded value.
    return (entropies.float() >= threshold) & mask


@dataclass
class AdaptiveEntropyCoefficient:
    """An entropy coefficient that grows while entropy is at or below a target and shrinks above it.

    Skywork-OR1 (arXiv:2505.22312). The bonus applies only while the last step's entropy was at or below the target;
    before the first measurement it does not.

    Example:
        >>> controller = AdaptiveEntropyCoefficient(0.0, minimum=0.0, maximum=1.0, step=0.25, target=0.5)
        >>> controller.update(0.4)
        >>> controller.applied
        0.25
        >>> controller.update(0.6)
        >>> controller.applied, controller.coefficient
        (0.0, 0.0)
    """

    coefficient: float
    minimum: float
    maximum: float
    step: float
    """Change per GRPO step."""
    target: float
    """Nats, mean per token."""
    last_entropy: float = math.inf
    """Nats: mean over the last optimizer step's tokens on all ranks."""

    @property
    def applied(self) -> float:
        """The coefficient that the next optimizer step uses."""
        return self.coefficient if self.last_entropy <= self.target else 0.0

    def update(self, mean_entropy: float) -> None:
        """Takes the mean entropy of a finished optimizer step, over all ranks; call once per optimizer step."""
        if mean_entropy <= self.target:
            self.coefficient = min(self.coefficient + self.step, self.maximum)
        else:
            self.coefficient = max(self.coefficient - self.step, self.minimum)
        self.last_entropy = mean_entropy

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"coefficient": self.coefficient, "last_entropy": self.last_entropy}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues from :meth:`state_dict`."""
        self.coefficient, self.last_entropy = state["coefficient"], state["last_entropy"]
