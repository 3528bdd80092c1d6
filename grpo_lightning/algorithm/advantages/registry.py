"""The rules of advantages by name, and how ``model.advantages`` and the settings beside it become one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor

from grpo_lightning.algorithm.advantages.baselines import maxrl, opo, reinforce_plus_plus_baseline, rloo
from grpo_lightning.algorithm.advantages.group_relative import GroupRelative, NormalizeThenSum
from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.choice import chosen, made

AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")

AdvantageRule = Callable[[ScoredStep], Tensor]
"""From a step to ``(N,)`` or ``(T,)``; NaN counts as 0."""
AdvantageSpec = str | dict[str, Any] | AdvantageRule
"""Type of ``model.advantages``: a name or import path, class_path with init_args, or from Python the rule itself."""

ADVANTAGES: dict[str, Any] = {
    "grpo": GroupRelative,
    "rloo": rloo,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "opo": opo,
    "maxrl": maxrl,
}


def make_rule(spec: AdvantageSpec, scale_rewards: str, aggregation: str, partial_rewards: str) -> AdvantageRule:
    """The rule of ``model.advantages``.

    Args:
        spec: A registered name, an import path, class_path with init_args, or from Python the rule itself.
        scale_rewards, aggregation, partial_rewards: The settings beside it (``multi_objective_aggregation`` the second).

    Raises:
        ValueError: If there is no such rule, or a setting has no effect on it.
    """
    name, found, settings = chosen("advantages", spec, ADVANTAGES)
    if name != "grpo":
        for setting, value, usual in (
            ("scale_rewards", scale_rewards, "group"),
            ("multi_objective_aggregation", aggregation, AGGREGATIONS[0]),
        ):
            if value != usual:
                raise ValueError(
                    f"model.{setting}={value!r} has no effect with model.advantages="
                    f"{name}: it is a setting of grpo. Remove one of the two."
                )
    if found is GroupRelative:
        if aggregation == "sum_then_normalize":
            grpo = partial(GroupRelative, scale_rewards=scale_rewards)
            return cast(AdvantageRule, made("advantages", name, grpo, settings))
        if scale_rewards != "group":
            raise ValueError(
                f"model.scale_rewards={scale_rewards!r} has no effect with "
                "model.multi_objective_aggregation='normalize_then_sum', which always divides by the standard "
                "deviation of the group and then of the batch. Remove one of the two."
            )
        if settings:
            raise ValueError(
                f"model.advantages.init_args={settings!r} has no effect with model.multi_objective_aggregation="
                "'normalize_then_sum'. Remove one of the two."
            )
        return NormalizeThenSum(partial_rewards if partial_rewards != "drop" else "sum")
    if not isinstance(found, type) and settings:
        raise ValueError(f"model.advantages.init_args={settings!r} has no effect: {name} is a function.")
    rule: AdvantageRule = made("advantages", name, found, settings) if isinstance(found, type) else found
    if not callable(rule):
        raise ValueError(f"model.advantages={name!r} cannot be called with a ScoredStep.")
    return rule
