"""Rewards: what a completion is worth. Importing this package registers the built-in ones.

It does not import torch: each process of a reward with ``isolation: process`` imports it. What runs in the trainer
alone is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from grpo_lightning.rewards.accuracy import AccuracyReward
from grpo_lightning.rewards.base import (
    CALLING,
    BaseRewardFunction,
    Completion,
    RewardContractError,
    RewardState,
    completion_text,
)
from grpo_lightning.rewards.completion_reward import CompletionReward
from grpo_lightning.rewards.function import FunctionReward
from grpo_lightning.rewards.kinds.code_execution import CodeExecutionReward
from grpo_lightning.rewards.kinds.environment import EnvironmentReward
from grpo_lightning.rewards.kinds.fluency import FluencyReward
from grpo_lightning.rewards.kinds.format import FormatReward
from grpo_lightning.rewards.kinds.json_schema import JSONSchemaReward
from grpo_lightning.rewards.kinds.judge import LLMJudgeReward
from grpo_lightning.rewards.kinds.language import LanguageReward
from grpo_lightning.rewards.kinds.length import LengthReward
from grpo_lightning.rewards.kinds.no_hallucination import NoHallucinationReward
from grpo_lightning.rewards.kinds.pattern import RegexReward
from grpo_lightning.rewards.kinds.reasoning_gym import ReasoningGymReward
from grpo_lightning.rewards.kinds.remote_reward_model import RemoteRewardModelReward
from grpo_lightning.rewards.kinds.repetition import RepetitionReward
from grpo_lightning.rewards.kinds.reward_model import RewardModelReward
from grpo_lightning.rewards.registry import (
    REWARD_FUNCTIONS,
    get_reward_function,
    get_reward_functions,
    list_reward_functions,
    register_reward,
)
from grpo_lightning.rewards.resolve import RewardSpec, parse_weights, resolve_rewards
from grpo_lightning.rewards.runtime.failures import RewardFailedError
from grpo_lightning.rewards.runtime.step_scoring import StepScoring

if TYPE_CHECKING:
    from grpo_lightning.rewards.runner import RewardRunner
    from grpo_lightning.rewards.runtime.composition import RewardComposition
    from grpo_lightning.rewards.runtime.reward_table import RewardTable
    from grpo_lightning.rewards.runtime.settings import RewardRuntime

__all__ = [
    "CALLING",
    "REWARD_FUNCTIONS",
    "AccuracyReward",
    "BaseRewardFunction",
    "Completion",
    "CompletionReward",
    "FormatReward",
    "FunctionReward",
    "ReasoningGymReward",
    "LengthReward",
    "RewardComposition",
    "RewardContractError",
    "RewardFailedError",
    "RewardRunner",
    "RewardRuntime",
    "RewardSpec",
    "RewardState",
    "RewardTable",
    "StepScoring",
    "CodeExecutionReward",
    "EnvironmentReward",
    "FluencyReward",
    "LLMJudgeReward",
    "JSONSchemaReward",
    "LanguageReward",
    "NoHallucinationReward",
    "RegexReward",
    "RemoteRewardModelReward",
    "RepetitionReward",
    "RewardModelReward",
    "completion_text",
    "get_reward_function",
    "get_reward_functions",
    "list_reward_functions",
    "parse_weights",
    "register_reward",
    "resolve_rewards",
]

_TRAINER_SIDE = {
    "RewardComposition": "runtime.composition",
    "RewardRunner": "runner",
    "RewardRuntime": "runtime.settings",
    "RewardTable": "runtime.reward_table",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name not in _TRAINER_SIDE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_TRAINER_SIDE[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
