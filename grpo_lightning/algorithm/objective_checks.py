"""What an objective refuses besides its loss, in the words of the config, before any weights load."""

from __future__ import annotations

from dataclasses import fields

from grpo_lightning.algorithm import sampler_correction
from grpo_lightning.algorithm.importance_ratio import IMPORTANCE_LEVELS
from grpo_lightning.algorithm.losses import PolicyLoss
from grpo_lightning.algorithm.objective_settings import ObjectiveSettings
from grpo_lightning.algorithm.setting_checks import (
    check_above_zero,
    check_finite,
    check_known,
    check_not_negative,
    refusal,
)

ADAPTIVE_ENTROPY = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")
CORRECTION = ("importance_sampling_mode", "importance_sampling_min", "importance_sampling_max")


def check_ranges(objective: ObjectiveSettings) -> None:
    """Raises a ``ValueError`` for single settings that cannot work."""
    check_known(objective, "importance_sampling_level", IMPORTANCE_LEVELS)
    check_known(objective, "importance_sampling_mode", sampler_correction.MODES)
    check_finite(objective)
    check_not_negative(objective, "beta", "off_policy_mask_threshold", "entropy_coef_delta")
    check_above_zero(objective, "max_completion_length")
    if not 0 <= objective.top_entropy_quantile <= 1:
        raise refusal(objective, "top_entropy_quantile", "is a share of the tokens. Choose a value from 0 to 1.")


def check(objective: ObjectiveSettings, loss: PolicyLoss) -> None:
    """Raises a ``ValueError`` for settings that cannot work together, or would be ignored beside this loss."""
    _check_kl(objective)
    _check_sampler_correction(objective, loss)
    _check_adaptive_entropy(objective)


def _refuse_changed(objective: ObjectiveSettings, names: tuple[str, ...], why: str) -> None:
    defaults = {setting.name: setting.default for setting in fields(objective)}
    for name in names:
        if getattr(objective, name) != defaults[name]:
            raise refusal(objective, name, why)


def _check_kl(objective: ObjectiveSettings) -> None:
    if objective.beta == 0:
        names = ("use_bias_correction_kl", "kl_estimator")
        _refuse_changed(objective, names, "has no effect with model.beta=0. Remove it, or set beta.")
    if objective.kl_estimator == "k1" and not objective.use_bias_correction_kl:
        why = "has a gradient of 0 on average with model.use_bias_correction_kl=false. Turn that on, or use k2 or k3."
        raise refusal(objective, "kl_estimator", why)


def _check_sampler_correction(objective: ObjectiveSettings, loss: PolicyLoss) -> None:
    if not objective.importance_sampling_correction:
        _refuse_changed(objective, CORRECTION, "has no effect with model.importance_sampling_correction=false.")
        return
    if loss.sampler_correction == "none":
        why = f"has no effect with model.loss_type={loss.name!r}, which compares with the sampler's logprobs itself."
        _refuse_changed(objective, CORRECTION, why)
    minimum, maximum = objective.importance_sampling_min, objective.importance_sampling_max
    check_not_negative(objective, "importance_sampling_min")  # of a ratio, which is above 0
    check_above_zero(objective, "importance_sampling_max")
    mode = objective.importance_sampling_mode
    if minimum is not None and maximum is not None and minimum >= maximum:
        why = f"has to be below model.importance_sampling_max={maximum!r}."
        raise refusal(objective, "importance_sampling_min", why)
    if mode.endswith("truncate") and minimum is None and maximum is None:
        why = "has nothing to truncate at. Set model.importance_sampling_max (by default 3.0) or _min."
        raise refusal(objective, "importance_sampling_mode", why)


def _check_adaptive_entropy(objective: ObjectiveSettings) -> None:
    if not objective.use_adaptive_entropy:
        _refuse_changed(objective, ADAPTIVE_ENTROPY, "has no effect without model.use_adaptive_entropy=true.")
        return
    low, high = objective.entropy_coef_min, objective.entropy_coef_max
    if low >= high:
        raise refusal(objective, "entropy_coef_min", f"has to be below model.entropy_coef_max={high!r}.")
    if not low <= objective.entropy_coef <= high:
        why = f"is where the adaptive coefficient starts. Choose a value from entropy_coef_min={low} to "
        raise refusal(objective, "entropy_coef", why + f"entropy_coef_max={high}.")
