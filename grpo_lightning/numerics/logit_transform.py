"""From a model's raw logits to the logits of the distribution that it is sampled from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """What lies between ``hidden @ weight.T + bias`` and the distribution that tokens are sampled from.

    ``z = softcap * tanh(logit_scale * raw / softcap) / temperature``; without a softcap ``z = logit_scale * raw /
    temperature``.
    """

    temperature: float = 1.0
    """The sampling temperature. Scoring at another one puts every importance ratio off 1."""
    logit_scale: float = 1.0
    """Cohere's ``logit_scale``; the inverse of Granite's ``logits_scaling``."""
    softcap: float | None = None
    """Gemma 2's ``final_logit_softcapping``."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"model.temperature={self.temperature} has no distribution to score. Sample at a positive temperature."
            )

    def apply(self, raw: Tensor) -> Tensor:
        """z, from raw logits of the same shape, which may be overwritten."""
        if self.softcap is None:
            factor = self.logit_scale / self.temperature
            return raw if factor == 1.0 else raw.mul_(factor)
        return torch.tanh(raw * (self.logit_scale / self.softcap)) * (self.softcap / self.temperature)

    def slope(self, z: Tensor) -> Tensor | float:
        """D z / d raw, expressed in z."""
        factor = self.logit_scale / self.temperature
        if self.softcap is None:
            return factor
        return factor * (1.0 - (z * (self.temperature / self.softcap)).square())
