"""LightningModules: policy, then rollouts, then evaluation, then the objective, then the GRPO step."""

from grpo_lightning.modules.dpo import DPOModule
from grpo_lightning.modules.grpo import GRPOModule
from grpo_lightning.modules.reward_model import RewardModelModule
from grpo_lightning.modules.sft import SFTModule

__all__ = ["DPOModule", "GRPOModule", "RewardModelModule", "SFTModule"]
