"""What an objective refuses, in the words of the config, before any weights load."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields
from typing import TYPE_CHECKING

from grpo_lightning.algorithm import sampler_correction

if TYPE_CHECKING:
    from grpo_lightning.algorithm.objective import Objective

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Loss types with the clipped surrogate; they differ in the averaging only."""
IMPORTANCE_LEVELS = ("token", "sequence", "sequence_token")

ONLY_WITH_LOSS_TYPES = {
    "epsilon": CLIPPED,
    "epsilon_high": (*CLIPPED, "cispo"),
    "delta": CLIPPED,
    "sapo_temperature_pos": ("sapo",),
    "sapo_temperature_neg": ("sapo",),
    "vespo_k_pos": ("vespo",),
    "vespo_lambda_pos": ("vespo",),
    "vespo_k_neg": ("vespo",),
    "vespo_lambda_neg": ("vespo",),
}
"""Settings that only some losses read."""
ADAPTIVE_ENTROPY = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")
CORRECTION = ("importance_sampling_mode", "importance_sampling_min", "importance_sampling_max")


def check(objective: Objective) -> None:
    """Raises a ``ValueError`` for settings that cannot work or would be ignored; warns where TRL warns."""
    _check_choices(objective)
    _check_ranges(objective)
    _check_unused(objective)
    _check_clipping(objective)
    _check_sampler_correction(objective)
    _check_adaptive_entropy(objective)
    _warn_importance_level(objective)


def _refuse(objective: Objective, name: str, why: str) -> ValueError:
    return ValueError(f"model.{name}={getattr(objective, name)!r} {why}")


def _check_choices(objective: Objective) -> None:
    choices = {
        "loss_type": LOSS_TYPES,
        "importance_sampling_level": IMPORTANCE_LEVELS,
        "importance_sampling_mode": sampler_correction.MODES,
    }
    for name, known in choices.items():
        if getattr(objective, name) not in known:
            raise _refuse(objective, name, f"is unknown. Choose one of {', '.join(known)}.")


def _check_ranges(objective: Objective) -> None:
    for setting in fields(objective):
        value = getattr(objective, setting.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise _refuse(objective, setting.name, "is not a finite number.")
    not_negative = ["beta", "epsilon", "epsilon_high", "off_policy_mask_threshold", "entropy_coef_delta"]
    for name in not_negative:
        value = getattr(objective, name)
        if value is not None and value < 0:
            raise _refuse(objective, name, "is negative. Choose 0 or more.")
    for name in ("delta", "sapo_temperature_pos", "sapo_temperature_neg", "max_completion_length"):
        value = getattr(objective, name)
        if value is not None and value <= 0:
            raise _refuse(objective, name, "has to be above 0.")
    for name in ("vespo_lambda_pos", "vespo_lambda_neg"):
        if getattr(objective, name) < 1e-4:
            raise _refuse(objective, name, "lets the weight of a completion grow without bound. Choose 1e-4 or more.")
    if not 0 <= objective.top_entropy_quantile <= 1:
        raise _refuse(objective, "top_entropy_quantile", "is a share of the tokens. Choose a value from 0 to 1.")


def _check_unused(objective: Objective) -> None:
    defaults = {setting.name: setting.default for setting in fields(objective)}

    def changed(names: tuple[str, ...]) -> list[str]:
        return [name for name in names if getattr(objective, name) != defaults[name]]

    for name in changed(tuple(ONLY_WITH_LOSS_TYPES)):
        if objective.loss_type not in ONLY_WITH_LOSS_TYPES[name]:
            used_by = ", ".join(ONLY_WITH_LOSS_TYPES[name])
            why = f"has no effect with model.loss_type={objective.loss_type!r}. Remove it, or use one of: {used_by}."
            raise _refuse(objective, name, why)
    if objective.beta == 0 and changed(("use_bias_correction_kl",)):
        raise _refuse(objective, "use_bias_correction_kl", "has no effect with model.beta=0. Remove it, or set beta.")
    if not objective.use_adaptive_entropy:
        for name in changed(ADAPTIVE_ENTROPY):
            raise _refuse(objective, name, "has no effect without model.use_adaptive_entropy=true.")
    if not objective.importance_sampling_correction:
        for name in changed(CORRECTION):
            raise _refuse(objective, name, "has no effect with model.importance_sampling_correction=false.")


def _check_clipping(objective: Objective) -> None:
    if objective.loss_type == "cispo":
        if objective.epsilon_high is None:
            why = "cannot be left out with model.loss_type='cispo', where it is the largest weight itself, not a "
            raise _refuse(objective, "epsilon_high", why + "distance from 1. The papers use about 5.0.")
        if objective.epsilon_high < 1:
            why = "is the largest weight with model.loss_type='cispo': below 1 it scales down every on-policy token"
            warnings.warn(str(_refuse(objective, "epsilon_high", why + ". The papers use about 5.0.")), stacklevel=5)
    if objective.delta is not None and objective.delta <= 1 + objective.upper_epsilon:
        why = f"is not above 1 + epsilon_high = {1 + objective.upper_epsilon:g}, so it clips good tokens earlier too."
        warnings.warn(str(_refuse(objective, "delta", why)), stacklevel=5)


def _check_sampler_correction(objective: Objective) -> None:
    if not objective.importance_sampling_correction:
        return
    minimum, maximum = objective.importance_sampling_min, objective.importance_sampling_max
    mode = objective.importance_sampling_mode
    if minimum is not None and maximum is not None and minimum >= maximum:
        why = f"has to be below model.importance_sampling_max={maximum!r}."
        raise _refuse(objective, "importance_sampling_min", why)
    if mode.endswith("truncate") and minimum is None and maximum is None:
        why = "has nothing to truncate at. Set model.importance_sampling_max (by default 3.0) or _min."
        raise _refuse(objective, "importance_sampling_mode", why)
    if objective.loss_type == "vespo" and not mode.startswith("token"):
        why = (
            "gives one weight per completion, but model.loss_type='vespo' multiplies the weights of the tokens itself. "
        )
        why += "Choose token_truncate or token_mask, or set model.importance_sampling_correction=false."
        raise _refuse(objective, "importance_sampling_mode", why)


def _check_adaptive_entropy(objective: Objective) -> None:
    if not objective.use_adaptive_entropy:
        return
    low, high = objective.entropy_coef_min, objective.entropy_coef_max
    if low >= high:
        raise _refuse(objective, "entropy_coef_min", f"has to be below model.entropy_coef_max={high!r}.")
    if not low <= objective.entropy_coef <= high:
        why = f"is where the adaptive coefficient starts. Choose a value from entropy_coef_min={low} to "
        raise _refuse(objective, "entropy_coef", why + f"entropy_coef_max={high}.")


def _warn_importance_level(objective: Objective) -> None:
    level, loss_type = objective.importance_sampling_level, objective.loss_type
    if level == "sequence" and loss_type in ("bnpo", "dr_grpo", "dapo", "cispo"):
        warnings.warn(
            f"model.importance_sampling_level='sequence' with model.loss_type={loss_type!r}: this loss sums over "
            "tokens, so each completion counts by its length. GSPO's own objective is loss_type='grpo'.",
            stacklevel=5,
        )
    if loss_type == "luspo" and level == "token":
        warnings.warn(
            "model.loss_type='luspo' is defined for sequence ratios: set model.importance_sampling_level='sequence'.",
            stacklevel=5,
        )
    if loss_type == "vespo" and level != "token":
        warnings.warn(
            f"model.importance_sampling_level={level!r} with model.loss_type='vespo' changes the KL term only: VESPO "
            "weighs whole completions by itself. Leave it at 'token'.",
            stacklevel=5,
        )
