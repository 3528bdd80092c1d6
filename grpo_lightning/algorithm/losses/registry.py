"""The losses by name, and how ``model.loss_type`` and the settings beside it become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from grpo_lightning.algorithm.choice import chosen, loss_made, refuse_foreign
from grpo_lightning.algorithm.losses.base import FunctionLoss, PolicyLoss
from grpo_lightning.algorithm.losses.cispo import CISPOLoss
from grpo_lightning.algorithm.losses.clipped import BNPOLoss, DAPOLoss, DrGRPOLoss, GRPOLoss, LUSPOLoss
from grpo_lightning.algorithm.losses.covariance import ClipCovLoss, KLCovLoss
from grpo_lightning.algorithm.losses.dppo import DPPOLoss
from grpo_lightning.algorithm.losses.gmpo import GMPOLoss
from grpo_lightning.algorithm.losses.sapo import SAPOLoss
from grpo_lightning.algorithm.losses.vespo import VESPOLoss
from grpo_lightning.algorithm.token_batch import LossInputs

LOSSES: dict[str, type[PolicyLoss]] = {
    "grpo": GRPOLoss,
    "bnpo": BNPOLoss,
    "dr_grpo": DrGRPOLoss,
    "dapo": DAPOLoss,
    "luspo": LUSPOLoss,
    "cispo": CISPOLoss,
    "sapo": SAPOLoss,
    "vespo": VESPOLoss,
    "gmpo": GMPOLoss,
    "dppo": DPPOLoss,
    "clip_cov": ClipCovLoss,
    "kl_cov": KLCovLoss,
}

LossSpec = str | dict[str, Any] | PolicyLoss | Callable[[LossInputs], Tensor]
"""Type of ``model.loss_type``: a name or import path, class_path with init_args, or from Python the loss itself."""


def make_loss(spec: LossSpec, given: Mapping[str, Any], max_completion_length: int) -> PolicyLoss:
    """The loss of ``model.loss_type``, with the settings beside it that it has.

    Args:
        spec: A registered name, the import path of a subclass of PolicyLoss or of a function from LossInputs to a
            ``(T,)`` tensor, such a class or function, ``{"class_path": ..., "init_args": {...}}``, or a loss.
        given: Settings of the command line that may be the loss's: ``epsilon``, ``delta``, ...; None is not given.
        max_completion_length: For a loss with a field of that name.

    Raises:
        ValueError: If there is no such loss, or a given setting is not its own.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(spec, PolicyLoss):
        refuse_foreign(spec.name, given, (), LOSSES)
        return spec
    name, factory, settings = chosen("loss_type", spec, LOSSES)
    if not (isinstance(factory, type) and issubclass(factory, PolicyLoss)):
        if isinstance(factory, type) or not callable(factory) or settings:
            raise ValueError(
                f"model.loss_type={name!r} is neither a subclass of grpo_lightning.algorithm.losses.PolicyLoss nor a "
                "function, or it is a function with init_args, which only a class has."
            )
        refuse_foreign(name, given, (), LOSSES)
        return FunctionLoss(factory)
    if "max_completion_length" in {field.name for field in fields(factory) if field.init}:
        settings = {"max_completion_length": max_completion_length, **settings}
    loss: PolicyLoss = loss_made(name, factory, settings, given, LOSSES)
    return loss
