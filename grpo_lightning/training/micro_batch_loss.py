"""The loss of a micro-batch under the policy, and the entropy coefficient that it may adapt."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from grpo_lightning.algorithm.experience import NOBODY, Experience, Lessons, MicroBatch
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.training.distillation import SAMPLED
from grpo_lightning.training.load_balance import LoadBalance
from grpo_lightning.training.passes import Passes
from grpo_lightning.training.teachers import Teachers


class MicroBatchLoss:
    """One forward pass over a micro-batch, and the objective of its logprobs.

    Args:
        objective: The loss.
        passes: Over the policy.
        teachers: Whose divergence from the policy is added, if there are any.
        load_balance: Whose loss is added, if the policy has experts that it keeps in use.
    """

    def __init__(
        self,
        objective: Objective,
        passes: Passes,
        teachers: Teachers | None = None,
        load_balance: LoadBalance | None = None,
    ) -> None:
        self.objective, self.passes, self.teachers, self.load_balance = objective, passes, teachers, load_balance
        self.entropy_controller = objective.entropy_controller()

    def __call__(self, experience: Experience, micro_batch: MicroBatch, report: StepReport) -> Tensor:
        """This micro-batch's share of the loss, times the number of replicas, over which strategies take the mean."""
        loss = self._share(experience, micro_batch, report)
        return loss + self.passes.no_change() if micro_batch.is_last else loss

    def _share(self, experience: Experience, micro_batch: MicroBatch, report: StepReport) -> Tensor:
        scorer = self.passes.scorer
        if not len(micro_batch.rows):  # a pass that other ranks' collectives wait for
            return scorer.idle()
        teachers = self.teachers
        lessons, rows = experience.lessons_or_own, micro_batch.rows
        beside = None if teachers is None else partial(teachers.divergence, lessons, rows)
        logprobs, entropy, divergence, loads = scorer.score(
            experience.rollouts,
            rows,
            with_entropy=True,
            entropy_grad=self.objective.entropy_has_gradient,
            beside=beside,
            beside_alone=teachers is not None and self._is_only_taught(experience, lessons, rows),
            with_loads=self.load_balance is not None,
        )
        tokens = experience.token_batch(rows)
        loss, metrics = self.objective.loss(
            tokens,
            logprobs,
            entropy,
            micro_batch.totals,
            self.entropy_controller.applied if self.entropy_controller else None,
        )
        if teachers is not None and divergence is not None:
            taught, added = teachers.loss(lessons, rows, (divergence, logprobs), tokens, micro_batch.totals)
            loss, metrics = loss + taught, metrics + added
        if self.load_balance is not None and loads is not None:
            balancing, added = self.load_balance.loss(loads, micro_batch.loads_of_step)
            loss, metrics = loss + balancing, metrics + added
        if self.passes.replica.leads:  # the others have the same numbers
            report.add(metrics)
            report.add_mean("packing/fill", self.passes.fill(experience.rollouts, rows))
        return loss * self.passes.replica.count

    def _is_only_taught(self, experience: Experience, lessons: Lessons, rows: Tensor) -> bool:
        """Whether a teacher's divergence is all that trains these completions."""
        needs_logprobs = self.objective.trains_all_completions or bool(experience.has_advantage[rows].any())
        if needs_logprobs or (self.teachers is not None and self.teachers.settings.divergence == SAMPLED):
            return False
        return bool((lessons.teacher_of(rows) != NOBODY).any())

    def end_step(self, numbers: dict[str, float]) -> None:
        """Adds the entropy coefficient of the step, and adapts it to the step's entropy."""
        if self.entropy_controller is not None:
            numbers["entropy_coef"] = self.entropy_controller.coefficient
            if "entropy_of_trained_tokens" in numbers:
                self.entropy_controller.update(numbers["entropy_of_trained_tokens"])

    def state_dict(self) -> dict[str, Any]:
        """An entropy coefficient that has changed."""
        return self.entropy_controller.state_dict() if self.entropy_controller else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it; where the earlier run had none, it begins here."""
        if self.entropy_controller and state:
            self.entropy_controller.load_state_dict(state)
