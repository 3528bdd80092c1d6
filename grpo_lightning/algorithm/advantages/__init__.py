"""Rewards to advantages: how much better each completion is than the others of its group.

``model.advantages`` chooses the rule, one per file: a function from a :class:`ScoredStep` to a tensor.
"""

from grpo_lightning.algorithm.advantages.estimator import AdvantageEstimator
from grpo_lightning.algorithm.advantages.registry import ADVANTAGES, AdvantageRule, AdvantageSpec
from grpo_lightning.algorithm.advantages.result import Advantages
from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.advantages.statistics import (
    batch_std,
    centre_on_group,
    group_count,
    group_mean,
    group_std,
    group_sum,
    is_unanimous,
    successes,
)
from grpo_lightning.algorithm.advantages.token_rewards import CompletionTokens, RewardLists
from grpo_lightning.algorithm.advantages.totals import combine_rewards, is_partly_scored

__all__ = [
    "ADVANTAGES",
    "AdvantageEstimator",
    "AdvantageRule",
    "AdvantageSpec",
    "Advantages",
    "CompletionTokens",
    "RewardLists",
    "ScoredStep",
    "batch_std",
    "centre_on_group",
    "combine_rewards",
    "group_count",
    "group_mean",
    "group_std",
    "group_sum",
    "is_partly_scored",
    "is_unanimous",
    "successes",
]
