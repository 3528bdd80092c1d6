"""A model and rollouts -> logprobs: one path for policy, old policy and reference."""

from grpo_lightning.scoring.scorer import Scorer, TokenScores

__all__ = ["Scorer", "TokenScores"]
