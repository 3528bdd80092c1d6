"""Callbacks: what watches a run."""

from grpo_lightning.callbacks.alarms import Alarms
from grpo_lightning.callbacks.completions import CompletionWriter
from grpo_lightning.callbacks.earlier_run import EarlierRun
from grpo_lightning.callbacks.export import HuggingFaceExport
from grpo_lightning.callbacks.held_out import HeldOutLine
from grpo_lightning.callbacks.monitors import MonitorCheck
from grpo_lightning.callbacks.plan import RunPlan
from grpo_lightning.callbacks.predictions import PredictionWriter
from grpo_lightning.callbacks.settings import SettingsRecord
from grpo_lightning.callbacks.step_bar import StepBar
from grpo_lightning.callbacks.summary import BeforeAfterSummary
from grpo_lightning.callbacks.system import SystemRecord
from grpo_lightning.callbacks.terminal import SampleTable
from grpo_lightning.callbacks.tracking import Tracking

__all__ = [
    "Alarms",
    "BeforeAfterSummary",
    "CompletionWriter",
    "EarlierRun",
    "HeldOutLine",
    "HuggingFaceExport",
    "MonitorCheck",
    "PredictionWriter",
    "RunPlan",
    "SampleTable",
    "SettingsRecord",
    "StepBar",
    "SystemRecord",
    "Tracking",
]
