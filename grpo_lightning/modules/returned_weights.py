"""Weights that a module is given before it has any: they wait until its policy is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

OTHER_EXPERIMENT = (
    "This module has the weights that processes of its own strategy have trained (as ddp_notebook does), but not their step, "
    "reference, optimizer and history, which ended with them: a fit would be another experiment. To go on, make the module again and "
    'call trainer.fit(module, ckpt_path=".../last.ckpt"). To start anew from these weights, export them, and make a module of '
    "the export."
)


class ReturnedWeights:
    """Weights of a module that has none yet.

    A notebook's strategies (``ddp_notebook``, and ``auto`` there with several devices) train in processes of their own. At
    the end Lightning hands what they trained, and nothing else, to the module that started them, whose policy was never
    loaded: it is kept here, and is what the policy has once it loads, for evaluation and export.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.is_strict = True
        self.ends_a_training = False
        """Whether the weights are what other processes have trained."""
        self._trained_in = torch.zeros((), dtype=torch.int64).share_memory_()
        """The process that has trained the module, 0 for none; the same memory in those that are forked from this one."""

    def check_start(self, verb: str | None) -> None:
        """Refuses to train what other processes have trained: what they knew beside the weights is gone.

        Raises:
            ValueError: Saying how to go on.
        """
        if verb == "fit" and self.ends_a_training:
            raise ValueError(OTHER_EXPERIMENT)
        self._trained_in.zero_()

    def note_training(self) -> None:
        """Training starts, in this process."""
        self._trained_in.fill_(os.getpid())

    def keep(self, state: Mapping[str, Any], strict: bool, is_loaded: bool) -> bool:
        """Takes a module's ``state_dict``, in the place of an earlier one, if the policy is not loaded; says whether it has."""
        if not strict and self._trained_in.item() not in (0, os.getpid()):  # handed over by Lightning
            self.ends_a_training = True
        self.entries, self.is_strict = ({} if is_loaded else dict(state)), strict
        return not is_loaded

    @torch.no_grad()
    def put_into(self, module: L.LightningModule) -> None:
        """Copies what is trained, and buffers, into the module; a frozen base is what it was loaded as.

        Raises:
            RuntimeError: As of ``load_state_dict``, before anything is copied: for names, if they were to match, and shapes.
        """
        if not self.entries:
            return
        self._check(module)
        for name, held in (*module.named_parameters(), *module.named_buffers()):
            if name in self.entries and (held.requires_grad or not isinstance(held, torch.nn.Parameter)):
                held.copy_(self.entries[name])
        self.entries = {}

    def _check(self, module: L.LightningModule) -> None:
        held = module.state_dict(keep_vars=True)
        given = {name: value for name, value in self.entries.items() if isinstance(value, Tensor) and name in held}
        wrong = [
            f"{name} has shape {tuple(value.shape)}, not {tuple(held[name].shape)}"
            for name, value in given.items()
            if value.shape != held[name].shape
        ]
        if self.is_strict:
            wrong += [f"{name} is unknown" for name in self.entries if name not in held]
            known = {id(held[name]) for name in given}  # tied weights have several names
            trained = (name for name, value in held.items() if value.requires_grad and id(value) not in known)
            wrong += [f"{name} is missing" for name in trained]
        if wrong:
            more = f", and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise RuntimeError(
                f"The weights that load_state_dict was given before the policy was loaded do not fit it: {', '.join(wrong[:8])}{more}. "
                "Nothing was copied. Give those of a module with the same model and settings."
            )
