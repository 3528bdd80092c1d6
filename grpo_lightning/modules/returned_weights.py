"""Weights that a module is given before it has any: they wait until its policy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn

from grpo_lightning.distributed.sharding import copy_into, whole

MARK = "trained_in_another_process"
"""An entry of the state that a process hands to the one that started it, beside the weights that it has trained."""
OTHER_EXPERIMENT = (
    "This module has the weights that processes of its own strategy have trained (as ddp_notebook does), but not their step, "
    "reference, optimizer and history, which ended with them: a fit would be another experiment. To go on, make the module again and "
    'call trainer.fit(module, ckpt_path=".../last.ckpt"). To start anew from these weights, export them, and make a module of '
    "the export."
)


def mark_returned(module: Any, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """After a module's ``state_dict``: marks the one with which Lightning's forked or spawned processes end a fit."""
    trainer = module._trainer
    if prefix or trainer is None or not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        return
    is_over = (trainer.state.fn, trainer.state.status) == ("fit", "finished")
    if is_over and dist.is_initialized():  # in those processes alone
        state[MARK] = torch.ones(())


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

    def check_start(self, verb: str | None) -> None:
        """Refuses to train what other processes have trained: what they knew beside the weights is gone.

        Raises:
            ValueError: Saying how to go on.
        """
        if verb == "fit" and self.ends_a_training:
            raise ValueError(OTHER_EXPERIMENT)

    def keep(self, module: Any, state: Mapping[str, Any], strict: bool) -> Mapping[str, Any]:
        """Takes a module's ``state_dict``; of one whose policy is not loaded a copy waits, in the place of an earlier one.

        Returns:
            What the module is to load now.
        """
        is_returned, is_loaded = MARK in state, module.policy.is_loaded
        if is_returned:
            state = {name: value for name, value in state.items() if name != MARK}
        is_restored = module._trainer is not None and module.trainer.state.status == "running"  # of a checkpoint
        if is_returned or not is_restored:
            self.ends_a_training = is_returned
        self.entries, self.is_strict = {}, strict
        if is_loaded:
            return state
        self.entries = {
            name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in state.items()
        }
        return {}

    @torch.no_grad()
    def put_into(self, module: Any) -> None:
        """Copies what is trained, and buffers, into the module; a frozen base is what it was loaded as.

        Raises:
            RuntimeError: As of ``load_state_dict``, before anything is copied: for names, if they were to match, and shapes.
        """
        if not self.entries:
            return
        self._check(module)
        for name, held in (*module.named_parameters(), *module.named_buffers()):
            if name in self.entries and (held.requires_grad or not isinstance(held, nn.Parameter)):
                copy_into(held, whole(self.entries[name]))
        self.entries = {}
        module.policy.is_given = True

    def _check(self, module: Any) -> None:
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
