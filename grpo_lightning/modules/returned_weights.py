"""What other processes have trained, until the policy of this one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor


class ReturnedWeights:
    """Weights of a module that has none yet.

    A notebook's strategies (``ddp_notebook``, and ``auto`` there with several devices) train in processes of their own. At
    the end Lightning hands what they trained to the module that started them, whose policy was never loaded: it is kept
    here, and is what the policy has once it loads.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Tensor] = {}

    def keep(self, state: Mapping[str, Any]) -> None:
        """Takes a module's ``state_dict`` in the place of an earlier one."""
        self.entries = {name: value for name, value in state.items() if isinstance(value, Tensor)}

    @torch.no_grad()
    def put_into(self, module: L.LightningModule) -> None:
        """Copies what is trained, and buffers, into the module; a frozen base is what it was loaded as."""
        entries, self.entries = self.entries, {}
        for name, held in (*module.named_parameters(), *module.named_buffers()):
            if name in entries and (held.requires_grad or not isinstance(held, torch.nn.Parameter)):
                held.copy_(entries[name])
