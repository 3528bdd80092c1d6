"""Losses of completions that people prefer to others: DPO and its relatives, of pairs and of single completions; see registry.py."""

from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores
from grpo_lightning.algorithm.preferences.registry import PREFERENCE_LOSSES, PreferenceLossSpec, make_preference_loss

__all__ = [
    "PREFERENCE_LOSSES",
    "PreferenceLoss",
    "PreferenceLossSpec",
    "PreferenceScores",
    "make_preference_loss",
]
