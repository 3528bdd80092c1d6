"""How many of the trained weights differ from those that training started from: whether a run moves at all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from grpo_lightning.policy.low_precision_updates import spread_sample

TENSORS = 64
"""Trained tensors that are looked at, evenly spread over the model."""
ENTRIES = 1024
"""Of each of them."""


class WeightSample:
    """A fixed sample of the trained weights, as they were when it was taken.

    One step cannot tell a run that stalls from one that learns: in both most bfloat16 weights stay where they are. The share
    that has changed since the start can: it grows where steps add up, and stays where each is rounded away.

    Args:
        parameters: Of the model; frozen ones are left out. Sharded ones are sampled in this rank's part.

    Example:
        >>> weight = nn.Parameter(torch.zeros(4))
        >>> sample = WeightSample([weight])
        >>> weight.data[0] = 1.0
        >>> sample.changed()
        tensor([1., 0., 0., 0.])
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.parameters = trained[:: max(1, -(-len(trained) // TENSORS))]
        self.start = self._now().clone()

    def changed(self) -> Tensor:
        """1 for each sampled weight that differs from the start, else 0, float32, on the weights' device."""
        now = self._now()
        self.start = self.start.to(now.device)
        return (now != self.start).float()

    @torch.no_grad()
    def _now(self) -> Tensor:
        parts = [spread_sample(parameter, ENTRIES).float() for parameter in self.parameters]
        return torch.cat(parts) if parts else torch.zeros(0)
