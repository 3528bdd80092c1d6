"""The frame of a step, the same for every stage: how it begins, and how it is counted and logged as it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.seeds import seed_everything
from grpo_lightning.training.optimization import Optimization
from grpo_lightning.training.passes import Passes


class Steps:
    """Counts the steps of a run, and logs each.

    Args:
        optimization: Of the policy; its Lightning module is what logs.
        passes: Over the policy.
        seed: Of the run.
    """

    def __init__(self, optimization: Optimization, passes: Passes, seed: int) -> None:
        self.optimization, self.passes, self.seed = optimization, passes, seed
        self.done = 0
        """Steps finished; saved in checkpoints, and with the seed the source of all randomness."""
        self.metrics: dict[str, float] = {}
        """What the last step logged, the same on every rank."""
        self._sums = MetricSums()

    def begin(self, on_phase: Callable[[str], None] = lambda name: None) -> StepReport:
        """Seeds everything that draws from global generators during the step, and starts its clock.

        Args:
            on_phase: See ``StepReport``.
        """
        seed_everything(self.seed, "step", self.done, self.passes.replica.index)
        return StepReport(on_phase)

    def count(self) -> int:
        """Counts the step, once the policy is improved and before anything else is done about it; its number, from 1."""
        self.done += 1
        return self.done

    def end(self, report: StepReport) -> MetricSums:
        """What all ranks report of the step, in one collective."""
        sample = self.passes.policy.weight_sample
        if sample is not None:
            report.add_mean("update/changed_since_start", sample.changed())
        self._sums = report.close().over_ranks()
        return self._sums

    @property
    def unmeasured(self) -> list[str]:
        """Metrics that the last step had nothing to make of, as of a reward that applied to no completion; a later one may."""
        return self._sums.unmeasured()

    def log(self, numbers: dict[str, float], shown: Collection[str] | None = None) -> None:
        """Logs a step, with its learning rate and its speed.

        Until an epoch ends Lightning logs what a step lacks with its value of an earlier step: that is forgotten here.

        Args:
            numbers: Of all ranks; of ``tokens/completion`` and ``step_time`` the speed is made.
            shown: In the progress bar; None for all.
        """
        lightning, before = self.optimization.lightning, self.metrics
        tokens = numbers["tokens/completion"]
        self.metrics = {name: value for name, value in numbers.items() if name != "tokens/completion"}
        self.metrics["learning_rate"] = self.optimization.learning_rate
        self.metrics["tokens_per_second"] = tokens / numbers["step_time"]
        results: Any = lightning.trainer._results or {}
        for key in {f"training_step.{name}" for name in before.keys() - self.metrics.keys()} & results.keys():
            results[key].reset()
        for name in sorted(self.metrics):
            number = torch.tensor(float(self.metrics[name]))  # on the CPU: a float would go to the GPU and back
            lightning.log(name, number, prog_bar=shown is None or name in shown)
