"""The experience of a step: its rollouts with the logprobs of old policy and reference, no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithm.entropy import entropy_threshold, high_entropy_mask
from grpo_lightning.algorithm.experience import Experience
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.policy.dropout import has_dropout
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.reference import Reference
from grpo_lightning.rollouts.replicas import Replica
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training.passes import Passes
from grpo_lightning.training.reference_passes import ReferencePasses, ReferenceSettings
from grpo_lightning.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class ExperienceSettings(ReferenceSettings):
    """What the policy is compared with, and which completions count.

    Args:
        mask_truncated_completions: Leave completions that hit max_completion_length out of the loss (DAPO).
    """

    mask_truncated_completions: bool = False


class ExperienceMaker:
    """Scores rollouts under the policy that starts the step and under the reference, which it owns.

    Args:
        settings: See there.
        objective: Which of the logprobs the loss needs.
        policy: Its weights may load later.
        passes: Over the policy.
        reference_teaches: Whether a reference is there without the loss's need.

    Raises:
        ValueError: For settings of a reference that there is none of.
    """

    def __init__(
        self,
        settings: ExperienceSettings,
        objective: Objective,
        policy: Policy,
        passes: Passes,
        reference_teaches: bool = False,
    ) -> None:
        self.settings, self.objective, self.policy, self.passes = settings, objective, policy, passes
        without = None if objective.needs_reference or reference_teaches else "model.beta=0"
        self.reference_passes = ReferencePasses(settings, without, "Set model.beta.", policy, passes)
        self.has_dropout = False
        self.replica = Replica()
        self.device = torch.device("cpu")

    @property
    def reference(self) -> Reference | None:
        """None where there is none, or before ``start``."""
        return self.reference_passes.reference

    @property
    def reference_scorer(self) -> Scorer | None:
        """Of the reference."""
        return self.reference_passes.scorer

    def start(self, device: torch.device) -> None:
        """Copies the reference, once the weights are what training starts from.

        Args:
            device: Where the policy is trained.
        """
        self.device = device
        self.has_dropout = has_dropout(self.policy.model)
        self.reference_passes.start(device)

    def make(self, rollouts: Rollouts, num_updates: int = 1) -> Experience:
        """Moves the step to the device; adds old and reference logprobs where needed. Advantages are 0 until scored.

        Args:
            rollouts: N completions.
            num_updates: Optimizer steps on them; from the second on the old logprobs are not the current ones.
        """
        mask = rollouts.completion_mask
        if self.settings.mask_truncated_completions:
            mask = mask & ~rollouts.truncated[rollouts.token_rows()]
        needs_threshold = self.objective.needs_entropy_threshold
        old_logprobs = ref_logprobs = is_uncertain = None
        # With dropout the current logprobs are noisy, and what the sampler is compared with must not be.
        needs_old = self.has_dropout or self.objective.needs_old_logprobs_pass(num_updates)
        if needs_old or needs_threshold:
            old_logprobs, entropy = self.score(self.passes.scorer, rollouts, with_entropy=needs_threshold)
            if needs_threshold:
                is_uncertain = self._uncertain(entropy, mask)
        if self.objective.needs_reference:
            ref_logprobs = self.reference_passes.logprobs(rollouts, self.device)
        return Experience(
            rollouts=rollouts,
            advantages=torch.zeros(rollouts.num_completions),
            mask=mask,
            sampling_logprobs=to_device(rollouts.sampling_logprobs, self.device),
            old_logprobs=old_logprobs if needs_old else None,
            ref_logprobs=ref_logprobs,
            is_uncertain=is_uncertain,
        )

    def _uncertain(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """(T,) bool: the step's most uncertain tokens, over all replicas."""
        on_device = mask.to(self.device)
        entropies = torch.cat(self.replica.of_all(entropy[on_device].cpu())).to(self.device)
        threshold = entropy_threshold(entropies, self.objective.top_entropy_quantile)
        return high_entropy_mask(entropy, threshold, on_device)

    def score(self, scorer: Scorer, rollouts: Rollouts, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """(T,) logprobs and (T,) entropies, or an empty tensor, of all completion tokens; no gradient, dropout off."""
        return self.passes.score(scorer, rollouts, self.device, with_entropy)

    def move_reference(self, step: int) -> None:
        """Every ref_model_sync_steps GRPO steps, mixes the policy into the reference."""
        self.reference_passes.move(step)

    def state_dict(self) -> dict[str, Any]:
        """A reference that has moved."""
        return self.reference_passes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""
        self.reference_passes.load_state_dict(state)
