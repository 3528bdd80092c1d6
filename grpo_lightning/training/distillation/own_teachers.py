"""Teachers that are no models of their own: the policy as it is, and the run's reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from grpo_lightning.algorithm.lessons import Lessons
from grpo_lightning.numerics.divergence import Side, without_autocast_cache
from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.numerics.output_head import OutputHead, output_head
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training.passes import Passes
from grpo_lightning.training.reference_passes import ReferencePasses
from grpo_lightning.types import Rollouts


class PolicyAsTeacher:
    """The policy's own weights as they are now, without gradient and dropout (SDPO, arXiv:2601.20802).

    Args:
        passes: Over the policy.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    def start(self) -> None:
        """Nothing: the policy is there."""

    def side(self, lessons: Lessons, rows: Tensor) -> Side:
        """See ``Teacher``."""
        return _side_of(self.passes.scorer, lessons.rollouts, rows)


class ReferenceAsTeacher:
    """The run's reference: where training started, or what follows the policy by sync_ref_model (SDFT, arXiv:2601.19897).

    Args:
        reference_passes: Of the run; it starts first.
    """

    def __init__(self, reference_passes: ReferencePasses) -> None:
        self.reference_passes = reference_passes

    def start(self) -> None:
        """Nothing: the reference is there."""

    @contextmanager
    def _active(self, head: OutputHead) -> Iterator[None]:
        assert self.reference_passes.reference is not None
        with self.reference_passes.reference.active(), evaluating(head.module):
            yield

    def side(self, lessons: Lessons, rows: Tensor) -> Side:
        """See ``Teacher``."""
        reference, scorer = self.reference_passes.reference, self.reference_passes.scorer
        assert reference is not None and scorer is not None
        with reference.active():
            side = _side_of(scorer, lessons.rollouts, rows)
        return Side(side.hidden, side.head, partial(self._active, side.head))


def _side_of(scorer: Scorer, rollouts: Rollouts, rows: Tensor) -> Side:
    """Of a model that may be the policy, in the middle of the policy's own pass."""
    head = output_head(scorer.model)[1]
    with evaluating(scorer.model), without_autocast_cache():
        hidden = scorer.hidden(rollouts, rows)
    return Side(hidden, head, partial(evaluating, head.module))
