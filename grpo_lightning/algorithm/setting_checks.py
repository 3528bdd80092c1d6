"""Refusals of settings, in the words of the config."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Protocol


class HasObjectiveSettings(Protocol):
    """What a loss may ask of the other settings of the objective; see ``objective_settings.py`` for their meaning."""

    @property
    def importance_sampling_level(self) -> str:
        """Of the ratio: token, sequence or sequence_token."""

    @property
    def importance_sampling_correction(self) -> bool:
        """Whether the sampler's probabilities are corrected for."""

    @property
    def importance_sampling_mode(self) -> str:
        """Level and bounds of that correction."""

    @property
    def top_entropy_quantile(self) -> float:
        """Share of tokens that the policy term trains."""


def refusal(settings: Any, name: str, why: str) -> ValueError:
    """The error for the value that ``settings`` has under ``name``."""
    return ValueError(f"model.{name}={getattr(settings, name)!r} {why}")


def check_finite(settings: Any) -> None:
    """Refuses NaN and infinity in any field of a dataclass."""
    for setting in fields(settings):
        value = getattr(settings, setting.name, None)
        if isinstance(value, float) and not math.isfinite(value):
            raise refusal(settings, setting.name, "is not a finite number.")


def check_not_negative(settings: Any, *names: str) -> None:
    """Refuses values below 0; None passes."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 0:
            raise refusal(settings, name, "is negative. Choose 0 or more.")


def check_above_zero(settings: Any, *names: str) -> None:
    """Refuses values of 0 or less; None passes."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise refusal(settings, name, "has to be above 0.")


def check_known(settings: Any, name: str, known: tuple[str, ...]) -> None:
    """Refuses a value that is none of ``known``."""
    if getattr(settings, name) not in known:
        raise refusal(settings, name, f"is unknown. Choose one of {', '.join(known)}.")
