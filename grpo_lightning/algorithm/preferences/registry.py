"""The preference losses by name, and how ``model.loss_type`` and the settings beside it become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from grpo_lightning.algorithm.choice import find, made, split_spec
from grpo_lightning.algorithm.preferences.base import PreferenceLoss
from grpo_lightning.algorithm.preferences.ipo import IPOLoss
from grpo_lightning.algorithm.preferences.length_normalised import SigmoidNormLoss, SimPOLoss
from grpo_lightning.algorithm.preferences.sigmoid import HingeLoss, RobustLoss, SigmoidLoss
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
        spec: A registered name, the import path of a subclass of PreferenceLoss, ``{"class_path": ..., "init_args":
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
        _refuse_foreign(type(spec).__name__, given, ())
        return spec
    name, settings = split_spec("loss_type", spec)
    factory = find("loss_type", name, PREFERENCE_LOSSES)
    if not (isinstance(factory, type) and issubclass(factory, PreferenceLoss)):
        raise ValueError(
            f"model.loss_type={name!r} is no subclass of grpo_lightning.algorithm.preferences.PreferenceLoss."
        )
    _refuse_foreign(name, given, [field.name for field in fields(factory)])
    twice = ", ".join(sorted(given.keys() & settings.keys()))
    if twice:
        raise ValueError(f"model.{twice} is also in model.loss_type.init_args. Remove one of the two.")
    loss: PreferenceLoss = made("loss_type", name, factory, {**given, **settings})
    return loss


def _refuse_foreign(name: str, given: Mapping[str, Any], own: tuple[str, ...] | list[str]) -> None:
    for setting, value in given.items():
        if setting not in own:
            others = [
                known for known, loss in PREFERENCE_LOSSES.items() if setting in {field.name for field in fields(loss)}
            ]
            raise ValueError(
                f"model.{setting}={value!r} has no effect with model.loss_type={name!r}. Remove it, or use one of: "
                f"{', '.join(others)}."
            )
