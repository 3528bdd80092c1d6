"""Callbacks: what watches a run."""

from grpo_lightning.callbacks.alarms import Alarms
from grpo_lightning.callbacks.export import HuggingFaceExport
from grpo_lightning.callbacks.plan import RunPlan
from grpo_lightning.callbacks.predictions import PredictionWriter
from grpo_lightning.callbacks.summary import BeforeAfterSummary

__all__ = ["Alarms", "BeforeAfterSummary", "HuggingFaceExport", "PredictionWriter", "RunPlan"]
