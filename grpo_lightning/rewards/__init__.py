"""Rewards: what a completion is worth. Importing this package registers the built-in ones."""

from __future__ import annotations

from grpo_lightning.rewards.accuracy import AccuracyReward
from grpo_lightning.rewards.base import (
    BaseRewardFunction,
    Completion,
    RewardContractError,
    RewardState,
    completion_text,
)
from grpo_lightning.rewards.failures import RewardFailedError
from grpo_lightning.rewards.format import FormatReward
from grpo_lightning.rewards.function import FunctionReward
from grpo_lightning.rewards.length import LengthReward
from grpo_lightning.rewards.registry import (
    REWARD_FUNCTIONS,
    get_reward_function,
    get_reward_functions,
    list_reward_functions,
    register_reward,
)
from grpo_lightning.rewards.resolve import RewardSpec, parse_weights, resolve_rewards
from grpo_lightning.rewards.runner import RewardRunner
from grpo_lightning.rewards.table import RewardTable

__all__ = [
    "REWARD_FUNCTIONS",
    "AccuracyReward",
    "BaseRewardFunction",
    "Completion",
    "FormatReward",
    "FunctionReward",
    "LengthReward",
    "RewardContractError",
    "RewardFailedError",
    "RewardRunner",
    "RewardSpec",
    "RewardState",
    "RewardTable",
    "completion_text",
    "get_reward_function",
    "get_reward_functions",
    "list_reward_functions",
    "parse_weights",
    "register_reward",
    "resolve_rewards",
]
