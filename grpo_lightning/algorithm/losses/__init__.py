"""The losses that ``model.loss_type`` chooses, each with its settings, formula, average and metrics."""

from grpo_lightning.algorithm.losses.base import FunctionLoss, PolicyLoss
from grpo_lightning.algorithm.losses.registry import LOSSES, LossSpec, make_loss
from grpo_lightning.algorithm.token_batch import LossInputs

__all__ = ["LOSSES", "FunctionLoss", "LossInputs", "LossSpec", "PolicyLoss", "make_loss"]
