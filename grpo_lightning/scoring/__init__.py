"""A model and rollouts -> logprobs: one path for policy, old policy and reference."""

from grpo_lightning.scoring.readout import TokenScores
from grpo_lightning.scoring.scorer import Scorer

__all__ = ["Scorer", "TokenScores"]
