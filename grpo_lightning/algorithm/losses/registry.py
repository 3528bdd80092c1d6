"""The losses by name, and how ``model.loss_type`` and the settings beside it become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from grpo_lightning.algorithm.choice import find, made, split_spec
from grpo_lightning.algorithm.losses.base import FunctionLoss, PolicyLoss
from grpo_lightning.algorithm.losses.bnpo import BNPOLoss
from grpo_lightning.algorithm.losses.cispo import CISPOLoss
from grpo_lightning.algorithm.losses.clip_cov import ClipCovLoss
from grpo_lightning.algorithm.losses.dapo import DAPOLoss
from grpo_lightning.algorithm.losses.dppo import DPPOLoss
from grpo_lightning.algorithm.losses.dr_grpo import DrGRPOLoss
from grpo_lightning.algorithm.losses.gmpo import GMPOLoss
from grpo_lightning.algorithm.losses.grpo import GRPOLoss
from grpo_lightning.algorithm.losses.kl_cov import KLCovLoss
from grpo_lightning.algorithm.losses.luspo import LUSPOLoss
from grpo_lightning.algorithm.losses.sapo import SAPOLoss
from grpo_lightning.algorithm.losses.vespo import VESPOLoss

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

LossSpec = str | dict[str, Any] | PolicyLoss
"""Type of ``model.loss_type``: a name or import path, class_path with init_args, or from Python the loss itself."""


def make_loss(spec: LossSpec, given: Mapping[str, Any], max_completion_length: int) -> PolicyLoss:
    """The loss of ``model.loss_type``, with the settings beside it that it has.

    Args:
        spec: A registered name, the import path of a subclass of PolicyLoss or of a function from LossInputs to a
            ``(T,)`` tensor, ``{"class_path": ..., "init_args": {...}}``, or a loss.
        given: Settings of the command line that may be the loss's: ``epsilon``, ``delta``, ...; None is not given.
        max_completion_length: For a loss with a field of that name.

    Raises:
        ValueError: If there is no such loss, or a given setting is not its own.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(spec, PolicyLoss):
        _refuse_foreign(spec.name, given, ())
        return spec
    name, settings = split_spec("loss_type", spec)
    factory = find("loss_type", name, LOSSES)
    if not (isinstance(factory, type) and issubclass(factory, PolicyLoss)):
        if isinstance(factory, type) or not callable(factory) or settings:
            raise ValueError(
                f"model.loss_type={name!r} is neither a subclass of grpo_lightning.algorithm.losses.PolicyLoss nor a "
                "function, or it is a function with init_args, which only a class has."
            )
        _refuse_foreign(name, given, ())
        return FunctionLoss(factory)
    own = [field.name for field in fields(factory) if field.init]
    _refuse_foreign(name, given, own)
    twice = ", ".join(sorted(given.keys() & settings.keys()))
    if twice:
        raise ValueError(f"model.{twice} is also in model.loss_type.init_args. Remove one of the two.")
    if "max_completion_length" in own:
        settings = {"max_completion_length": max_completion_length, **settings}
    loss: PolicyLoss = made("loss_type", name, factory, {**given, **settings})
    return loss


def _refuse_foreign(name: str, given: Mapping[str, Any], own: tuple[str, ...] | list[str]) -> None:
    for setting, value in given.items():
        if setting not in own:
            others = [known for known, loss in LOSSES.items() if setting in {field.name for field in fields(loss)}]
            raise ValueError(
                f"model.{setting}={value!r} has no effect with model.loss_type={name!r}. Remove it, or use one of: "
                f"{', '.join(others)}."
            )
