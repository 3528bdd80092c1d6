"""The loss of a micro-batch under the policy, and the entropy coefficient that it may adapt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from grpo_lightning.algorithm.experience import Experience, MicroBatch
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_of
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.algorithm.token_batch import TokenBatch
from grpo_lightning.scoring.readout import TokenScores
from grpo_lightning.training.distillation.teachers import Teachers
from grpo_lightning.training.load_balance import LoadBalance
from grpo_lightning.training.passes import Passes


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

    def __call__(self, experience: Experience, micro_batch: MicroBatch) -> tuple[Tensor, MetricSums]:
        """This micro-batch's share of the loss, and what is logged of it.

        The share is times the number of replicas, over which strategies take the mean.
        """
        rows, replica, metrics = micro_batch.rows, self.passes.replica, MetricSums()
        if len(rows):
            share, metrics = self._share(experience, micro_batch)
            loss = share * replica.count
            metrics += MetricSums(means={"packing/fill": mean_of(self.passes.fill(experience.rollouts, rows))})
        else:  # a pass that other ranks' collectives wait for
            loss = self.passes.scorer.idle()
        loss = loss + self.passes.no_change() if micro_batch.is_last else loss
        return loss, metrics if replica.leads else MetricSums()  # the others have the same numbers

    def _share(self, experience: Experience, micro_batch: MicroBatch) -> tuple[Tensor, MetricSums]:
        """A forward pass, the objective of its logprobs, and what is added to that; with what is logged."""
        rows = micro_batch.rows
        scores = self.passes.scorer.score(
            experience.rollouts,
            rows,
            with_entropy=True,
            entropy_grad=self.objective.entropy_has_gradient,
            with_loads=self.load_balance is not None,
            **self._for_teachers(experience, rows),
        )
        tokens = experience.token_batch(rows)
        entropy_coef = self.entropy_controller.applied if self.entropy_controller else None
        loss, metrics = self.objective.loss(tokens, scores.logprobs, scores.entropy, micro_batch.totals, entropy_coef)
        for further, logged in self._further(experience, micro_batch, tokens, scores):
            loss, metrics = loss + further, metrics + logged
        return loss, metrics

    def _for_teachers(self, experience: Experience, rows: Tensor) -> dict[str, Any]:
        """What teachers ask of the pass."""
        if self.teachers is None:
            return {}
        alone = not self.objective.trains_all_completions and self.teachers.teach_alone(experience, rows)
        return {"beside": partial(self.teachers.divergence, experience, rows), "beside_alone": alone}

    def _further(
        self, experience: Experience, micro_batch: MicroBatch, tokens: TokenBatch, scores: TokenScores
    ) -> Iterator[tuple[Tensor, MetricSums]]:
        """The divergence from teachers, and the loss that keeps experts in use, where there are any."""
        if self.teachers is not None and scores.beside is not None:
            of_tokens = scores.beside, scores.logprobs
            yield self.teachers.loss(experience, micro_batch.rows, of_tokens, tokens, micro_batch.totals)
        if self.load_balance is not None and scores.loads is not None:
            yield self.load_balance.loss(scores.loads, micro_batch.loads_of_step)

    def end_step(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Adapts the entropy coefficient to the step's entropy, and tells which one the step had, if any."""
        if self.entropy_controller is None:
            return {}
        coefficient = self.entropy_controller.coefficient
        if "entropy_of_trained_tokens" in numbers:
            self.entropy_controller.update(numbers["entropy_of_trained_tokens"])
        return {"entropy_coef": coefficient}

    def state_dict(self) -> dict[str, Any]:
        """An entropy coefficient that has changed."""
        return self.entropy_controller.state_dict() if self.entropy_controller else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it; where the earlier run had none, it begins here."""
        if self.entropy_controller and state:
            self.entropy_controller.load_state_dict(state)
