"""The experience of a step: its rollouts with the logprobs of old policy and reference, no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grpo_lightning.algorithm.entropy import entropy_threshold, high_entropy_mask
from grpo_lightning.algorithm.experience import Experience
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.training.passes import Passes
from grpo_lightning.training.reference_passes import ReferencePasses
from grpo_lightning.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class ExperienceSettings:
    """Which completions count.

    Args:
        mask_truncated_completions: Leave completions that hit max_completion_length out of the loss (DAPO).
    """

    mask_truncated_completions: bool = False


class ExperienceMaker:
    """Scores rollouts under the policy that starts the step and under the reference.

    Args:
        settings: See there.
        objective: Which of the logprobs the loss needs.
        passes: Over the policy.
        reference_passes: Over the reference, if there is one.
    """

    def __init__(
        self, settings: ExperienceSettings, objective: Objective, passes: Passes, reference_passes: ReferencePasses
    ) -> None:
        self.settings, self.objective = settings, objective
        self.passes, self.reference_passes = passes, reference_passes

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
        is_noisy = has_dropout(self.passes.policy.model)
        needs_old = is_noisy or self.objective.needs_old_logprobs_pass(num_updates)
        if needs_old or needs_threshold:
            old_logprobs, entropy = self.passes.score(self.passes.scorer, rollouts, with_entropy=needs_threshold)
            if needs_threshold:
                is_uncertain = self._uncertain(entropy, mask)
        if self.objective.needs_reference:
            ref_logprobs = self.reference_passes.logprobs(rollouts)
        return Experience(
            rollouts=rollouts,
            advantages=torch.zeros(rollouts.num_completions),
            mask=mask,
            sampling_logprobs=to_device(rollouts.sampling_logprobs, self.passes.device),
            old_logprobs=old_logprobs if needs_old else None,
            ref_logprobs=ref_logprobs,
            is_uncertain=is_uncertain,
        )

    def _uncertain(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """(T,) bool: the step's most uncertain tokens, over all replicas."""
        on_device = mask.to(entropy.device)
        entropies = torch.cat(self.passes.replica.of_all(entropy[on_device].cpu())).to(entropy.device)
        threshold = entropy_threshold(entropies, self.objective.top_entropy_quantile)
        return high_entropy_mask(entropy, threshold, on_device)


FUNCTIONAL_DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""Names under which configurations keep a dropout that no submodule stands for."""


def has_dropout(model: nn.Module) -> bool:
    """True if a forward pass in training mode differs from one in evaluation mode: LoRA's dropout, or the model's."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    config = base_model(model).config
    config = config.get_text_config()
    return any((getattr(config, name, None) or 0) > 0 for name in FUNCTIONAL_DROPOUT)
