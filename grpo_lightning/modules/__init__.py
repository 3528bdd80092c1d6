"""LightningModules, one for each stage: the parts that it holds, and the order in which they act."""

from grpo_lightning.modules.dpo import DPOModule
from grpo_lightning.modules.grpo import GRPOModule
from grpo_lightning.modules.reward_model import RewardModelModule
from grpo_lightning.modules.sft import SFTModule

__all__ = ["DPOModule", "GRPOModule", "RewardModelModule", "SFTModule"]
