"""What other processes have trained: their steps, and their weights until the policy of this one is loaded."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

STEPS = "steps_done"
"""Beside the weights that a forked rank hands over."""


class ReturnedWeights:
    """Weights of a module that has none yet.

    A notebook's strategies (``ddp_notebook``, and ``auto`` there with several devices) train in processes of their own. At
    the end Lightning hands what they trained to the module that started them, whose policy was never loaded: it is kept
    here, and is what the policy has once it loads. The steps come with the weights: the next fit goes on counting, and
    does not draw the numbers of the first one again.

    Args:
        module: Whose ``state_dict`` gets the steps where Lightning hands it over, and nowhere else.
    """

    def __init__(self, module: L.LightningModule) -> None:
        self.entries: dict[str, Tensor] = {}
        module.register_state_dict_post_hook(add_steps)

    def take_steps(self, module: L.LightningModule, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state without the steps, which the module then has."""
        if STEPS in state:
            module.steps_done = int(state[STEPS])  # type: ignore[assignment]
        return {name: value for name, value in state.items() if name != STEPS}

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


def add_steps(module: L.LightningModule, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Adds the steps to what a forked rank hands to the process that started it, once its fit has ended."""
    trainer = module._trainer
    if prefix or trainer is None or trainer.state.fn != TrainerFn.FITTING or not trainer.state.finished:
        return
    if trainer.strategy.launcher is not None and multiprocessing.parent_process() is not None:
        state[STEPS] = torch.tensor(module.steps_done)
