"""The reference policy that the KL term holds on to: a frozen copy, neither a submodule nor moved by Lightning."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class FrozenReference:
    """A copy of the policy as it was at the start of training.

    It is held by a plain object, so Lightning does not wrap, move or save it.

    Args:
        policy: Copied, not kept.
        device: Where the copy lives; the policy's device by default.
        dtype: What the copy is held in; the policy's dtype by default.
    """

    def __init__(
        self, policy: PreTrainedModel, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        model = copy.deepcopy(policy).requires_grad_(False).eval()
        self.model: PreTrainedModel = model.to(device=device, dtype=dtype)
        self.was_synced = False

    @torch.no_grad()
    def sync(self, policy: PreTrainedModel, mixup_alpha: float) -> None:
        """Moves the reference towards the policy: ``alpha * policy + (1 - alpha) * reference``.

        The soft update of TR-DPO (arXiv:2404.09656), Eq. 4.
        """
        for mine, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            mine.lerp_(theirs.to(mine), mixup_alpha)
        self.was_synced = True

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights if they have moved away from model_name_or_path, else nothing."""
        return self.model.state_dict() if self.was_synced else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores moved weights."""
        if state:
            self.model.load_state_dict(state)
            self.was_synced = True
