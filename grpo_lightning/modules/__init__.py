"""LightningModules: policy, then rollouts, then evaluation, then the objective, then the GRPO step."""

from grpo_lightning.modules.grpo import GRPOModule

__all__ = ["GRPOModule"]
