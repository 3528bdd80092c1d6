"""From preferences to scores of whole completions under policy and reference, and their loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.mixture import MixedPrompts
from grpo_lightning.datamodules.written.preferences import Preferences
from grpo_lightning.errors import ExplainedError
from grpo_lightning.numerics.deterministic_gather import sums_at
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.load_balance import ExpertLoads
from grpo_lightning.training.passes import Passes
from grpo_lightning.training.precomputed_logps import PrecomputedLogps
from grpo_lightning.training.reference_passes import ReferencePasses
from grpo_lightning.types import PromptBatch, Rollouts

PRECOMPUTED_AT_ONCE = 64
"""Prompts; they fill passes."""


def sum_per_completion(values: Tensor, lengths: Tensor) -> Tensor:
    """``(M,)``: sums of the ``(T,)`` values of M completions that lie end to end.

    Example:
        >>> sum_per_completion(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 2]))
        tensor([1., 6.])
    """
    rows = to_device(torch.repeat_interleave(torch.arange(len(lengths)), lengths), values.device)
    return sums_at(values, rows, len(lengths))


def plan_examples(passes: Passes, preferences: Preferences) -> list[Tensor]:
    """The completions of each pass: no pair is torn apart, since its loss is one of both together."""
    scorer, examples, budget = passes.scorer, preferences.examples(), passes.max_tokens
    all_of_them = torch.arange(preferences.num_examples)
    parts = scorer.plan(examples, all_of_them, budget)
    if preferences.in_pairs and scorer.layout == "padded":  # a pair is two rows, each as long as the longest
        parts = scorer.plan(examples, all_of_them, max(budget // 2, 1))
    return [preferences.rows_of(part) for part in parts]


class OtherReferenceError(ExplainedError, ValueError):
    """A checkpoint that lacks what this run compares with."""


class PreferencePasses:
    """Scores completions as wholes.

    Args:
        loss: Says whether a reference and the KL divergence are needed.
        passes: Over the policy.
        reference_passes: None where completions are not compared with a reference.
        precomputed: In place of passes over the reference, where there is one.
    """

    def __init__(
        self,
        loss: PreferenceLoss,
        passes: Passes,
        reference_passes: ReferencePasses | None,
        precomputed: PrecomputedLogps | None = None,
    ) -> None:
        self.loss, self.passes = loss, passes
        self.reference_passes, self.precomputed = reference_passes, precomputed

    @property
    def copies_reference(self) -> bool:
        """Whether a copy of the policy is on its device, to compare with."""
        return self.reference_passes is not None and self.reference_passes.copies_reference

    def expect(self, is_for_fit: bool) -> None:
        """Says whether what comes is a training, and not an evaluation, which leaves a reference that has moved as it is."""
        if self.reference_passes is not None:
            self.reference_passes.is_for_fit = is_for_fit

    def start(self) -> None:
        """Makes the reference, once, where there is to be one."""
        if self.reference_passes is not None and self.reference_passes.scorer is None:
            self.reference_passes.start()

    def move(self, step: int) -> None:
        """See ``ReferencePasses.move``."""
        if self.reference_passes is not None:
            self.reference_passes.move(step)

    def precompute(self, prompts: PromptDataset | MixedPrompts, read: Callable[[PromptBatch], Preferences]) -> None:
        """Takes down what all rows have under the policy as it is, before its first step; every rank has all of them then.

        Args:
            prompts: Of the data.
            read: Their completions.
        """
        assert self.precomputed is not None
        replica = self.passes.replica
        for start in range(0, len(prompts), PRECOMPUTED_AT_ONCE * replica.count):
            first = start + PRECOMPUTED_AT_ONCE * replica.index
            places = range(first, min(first + PRECOMPUTED_AT_ONCE, len(prompts)))
            rollouts = read(prompts.batch(list(places))).rollouts
            logprobs, _ = self.passes.score(self.passes.scorer, rollouts)
            logps = sum_per_completion(logprobs, rollouts.completion_lengths)
            for each in replica.of_all((rollouts, logps.cpu())):
                self.precomputed.add(*each)

    def reference_logps(self, preferences: Preferences) -> Tensor:
        """``(N,)`` nats of each completion under the reference, no gradient; 0 where there is none."""
        if self.precomputed is not None:
            return to_device(self.precomputed.of(preferences.rollouts), self.passes.device)
        if self.reference_passes is None:
            return torch.zeros(preferences.rollouts.num_completions, device=self.passes.device)
        return self._under_reference(preferences.rollouts)

    def kl(self, preferences: Preferences) -> Tensor:
        """``()`` nats: KTO's reference point, over all replicas; 0 for losses without."""
        if not self.loss.needs_kl:
            return torch.zeros((), device=self.passes.device)
        of_ranks = self.passes.replica.of_all(
            preferences.last_completions()
        )  # one batch over all, in the order of ranks
        rollouts = preferences.mismatched(of_ranks[self.passes.replica.index - 1])
        logprobs, _ = self.passes.score(self.passes.scorer, rollouts)
        ratios = sum_per_completion(logprobs, rollouts.completion_lengths) - self._under_reference(rollouts)
        sums = self.passes.replica.of_all((float(ratios.sum()), len(ratios)))
        mean = sum(each[0] for each in sums) / max(sum(each[1] for each in sums), 1)
        return torch.tensor(max(mean, 0.0), device=self.passes.device)

    def _under_reference(self, rollouts: Rollouts) -> Tensor:
        if self.reference_passes is None:
            return torch.zeros(rollouts.num_completions, device=self.passes.device)
        return sum_per_completion(self.reference_passes.logprobs(rollouts), rollouts.completion_lengths)

    def scores(
        self, preferences: Preferences, rows: Tensor, ref_logps: Tensor, kl: Tensor, with_loads: bool = False
    ) -> tuple[PreferenceScores, ExpertLoads | None]:
        """One forward pass over the completions ``rows``: their scores, and what routers did in it.

        Args:
            preferences: Of the step.
            rows: ``(M,)`` on the CPU, whole pairs.
            ref_logps: ``(N,)``.
            kl: ``()``.
            with_loads: Whether that is wanted.
        """
        rollouts, lengths = preferences.rollouts, preferences.rollouts.completion_lengths[rows]
        found = self.passes.scorer.score(rollouts, rows, with_loads=with_loads)
        scores = PreferenceScores(
            logps=sum_per_completion(found.logprobs, lengths),
            ref_logps=ref_logps[to_device(rows, self.passes.device)],
            lengths=to_device(lengths, self.passes.device),
            is_chosen=to_device(preferences.is_chosen[rows], self.passes.device),
            kl=kl,
        )
        return scores, found.loads

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a reference that has moved, or the numbers in its place."""
        if self.precomputed is not None:
            return {"precomputed_logps": self.precomputed.state_dict()}
        return {} if self.reference_passes is None else {"reference": self.reference_passes.state_dict()}

    def load_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Restores it.

        Raises:
            OtherReferenceError: If the checkpoint's run kept something else of its reference.
        """
        needed = "precomputed_logps" if self.precomputed is not None else "reference"
        if needed not in checkpoint and (self.precomputed or self.reference_passes) is not None:
            raise OtherReferenceError(
                f"The checkpoint is of a run without {needed}: its settings of the reference (model.precompute_ref_log_probs, "
                "model.reference_free, model.loss_type) or its stage were others. Resume with those, or start a run from the "
                "weights that it has exported (model.model_name_or_path)."
            )
        if self.precomputed is not None:
            self.precomputed.load_state_dict(checkpoint["precomputed_logps"])
        if self.reference_passes is not None:
            if self.reference_passes.reference is None and self.passes.policy.is_sharded:
                self.reference_passes.start()  # evaluations read it too
            if not self.reference_passes.load_state_dict(checkpoint["reference"]):
                rank_zero_warn(
                    "The reference has moved since this checkpoint (model.sync_ref_model), which does not hold what it was: its "
                    "completions are compared with the one of now. For the numbers of its time evaluate it with a new module."
                )
