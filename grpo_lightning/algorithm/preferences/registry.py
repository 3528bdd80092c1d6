"""The preference losses by name, and how ``model.loss_type`` and the settings beside it become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_lightning.algorithm.choice import chosen, loss_made, refuse_foreign
from grpo_lightning.algorithm.preferences.base import PreferenceLoss
from grpo_lightning.algorithm.preferences.pairs import (
    HingeLoss,
    IPOLoss,
    RobustLoss,
    SigmoidLoss,
    SigmoidNormLoss,
    SimPOLoss,
)
from grpo_lightning.algorithm.preferences.unpaired import APOZeroUnpairedLoss, KTOLoss

PREFERENCE_LOSSES: dict[str, type[PreferenceLoss]] = {
    "sigmoid": SigmoidLoss,
    "hinge": HingeLoss,
    "ipo": IPOLoss,
    "robust": RobustLoss,
    "sigmoid_norm": SigmoidNormLoss,
    "simpo": SimPOLoss,
    "kto": KTOLoss,
    "apo_zero_unpaired": APOZeroUnpairedLoss,
}

PreferenceLossSpec = str | dict[str, Any] | PreferenceLoss
"""Type of ``model.loss_type``: a name or import path, class_path with init_args, or from Python the loss itself."""


def make_preference_loss(spec: PreferenceLossSpec, given: Mapping[str, Any]) -> PreferenceLoss:
    """The loss of ``model.loss_type``, with the settings beside it that it has.

    Args:
        spec: A registered name, a subclass of PreferenceLoss or its import path, ``{"class_path": ..., "init_args":
            {...}}``, or a loss.
        given: Settings of the command line that may be the loss's (``beta``, ``label_smoothing``, ...); None is not
            given.

    Raises:
        ValueError: If there is no such loss, or a given setting is not its own.

    Example:
        >>> make_preference_loss("ipo", {"beta": 0.5, "label_smoothing": None})
        IPOLoss(beta=0.5)
    """
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(spec, PreferenceLoss):
        refuse_foreign(type(spec).__name__, given, (), PREFERENCE_LOSSES)
        return spec
    name, factory, settings = chosen("loss_type", spec, PREFERENCE_LOSSES)
    if not (isinstance(factory, type) and issubclass(factory, PreferenceLoss)):
        raise ValueError(
            f"model.loss_type={name!r} is no subclass of grpo_lightning.algorithm.preferences.PreferenceLoss."
        )
    loss: PreferenceLoss = loss_made(name, factory, settings, given, PREFERENCE_LOSSES)
    return loss
