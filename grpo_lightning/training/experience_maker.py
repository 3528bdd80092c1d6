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
from grpo_lightning.numerics.dtypes import DTYPES
from grpo_lightning.numerics.evaluation_mode import evaluating
from grpo_lightning.policy.dropout import has_dropout
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.reference import FrozenReference, Reference, make_reference
from grpo_lightning.rollouts.replicas import Replica
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training.passes import Passes
from grpo_lightning.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class ExperienceSettings:
    """What the policy is compared with, and which completions count.

    Args:
        mask_truncated_completions: Leave completions that hit max_completion_length out of the loss (DAPO).
        sync_ref_model: Move the reference towards the policy every ref_model_sync_steps steps.
        ref_model_mixup_alpha: Share of the policy in that move.
        ref_model_sync_steps: GRPO steps between moves.
        ref_model_device: Where the copy lives that full training compares with (cpu, cuda:1); None for the policy's
            device. Adapters need no copy.
        ref_model_dtype: float32, bfloat16 or float16: what that copy is held in; None for the policy's.

    Raises:
        ValueError: For a device or dtype that is none.
    """

    mask_truncated_completions: bool = False
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512
    ref_model_device: str | None = None
    ref_model_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.ref_model_dtype is not None and self.ref_model_dtype not in DTYPES:
            raise ValueError(f"model.ref_model_dtype={self.ref_model_dtype!r} is unknown. Choose {', '.join(DTYPES)}.")
        try:
            self.reference_device  # noqa: B018 - read for its error
        except RuntimeError as error:
            raise ValueError(f"model.ref_model_device={self.ref_model_device!r} is no device: {error}") from error

    @property
    def reference_device(self) -> torch.device | None:
        """ref_model_device as torch has it."""
        return None if self.ref_model_device is None else torch.device(self.ref_model_device)

    @property
    def reference_dtype(self) -> torch.dtype | None:
        """ref_model_dtype as torch has it."""
        return None if self.ref_model_dtype is None else DTYPES[self.ref_model_dtype]


class ExperienceMaker:
    """Owns the reference; scores rollouts under it and under the policy that starts the step.

    Args:
        settings: See there.
        objective: Which of the logprobs the loss needs.
        policy: Its weights may load later.
        passes: Over the policy.

    Raises:
        ValueError: For settings of a reference that there is none of.
    """

    def __init__(self, settings: ExperienceSettings, objective: Objective, policy: Policy, passes: Passes) -> None:
        self.settings, self.objective, self.policy, self.passes = settings, objective, policy, passes
        self._check_reference()
        self.reference: Reference | None = None
        self.reference_scorer: Scorer | None = None
        self.has_dropout = False
        self.replica = Replica()
        self.device = torch.device("cpu")

    def _check_reference(self) -> None:
        settings, needed = self.settings, self.objective.needs_reference
        if settings.sync_ref_model and not needed:
            raise ValueError("model.sync_ref_model needs a reference: with model.beta=0 there is none. Set model.beta.")
        has_adapters = self.policy.settings.has_adapters
        for name in ("ref_model_device", "ref_model_dtype"):
            value = getattr(settings, name)
            if value is not None and (has_adapters or not needed):
                reason = "adapters need no copy of the model" if has_adapters else "model.beta=0 needs none"
                raise ValueError(f"model.{name}={value!r} has no effect: {reason}. Leave it out.")

    def start(self, device: torch.device) -> None:
        """Copies the reference, once the weights are what training starts from.

        Args:
            device: Where the policy is trained.
        """
        self.device = device
        self.has_dropout = has_dropout(self.policy.model)
        if self.objective.needs_reference and self.reference is None:
            self.reference = self.make_reference()
        if self.reference is not None:
            self.reference.to(device)
            is_shared = self.reference.model is self.policy.model
            self.reference_scorer = self.passes.scorer if is_shared else self.passes.make_scorer(self.reference.model)

    def make_reference(self) -> Reference:
        """The policy as it is now, or, where ranks hold parts of it, as it was loaded."""
        device, dtype = self.settings.reference_device, self.settings.reference_dtype
        if self.policy.is_sharded and not self.policy.settings.has_adapters:  # shards cannot be copied as a module
            return FrozenReference(self.policy.load_model(), device, dtype, is_own=True)
        is_continued = self.policy.settings.adapter_name_or_path is not None
        return make_reference(self.policy.model, self.settings.sync_ref_model, is_continued, device, dtype)

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
            assert self.reference is not None and self.reference_scorer is not None
            with self.reference.active():
                ref_logprobs, _ = self.score(self.reference_scorer, rollouts)
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

    @torch.no_grad()
    def score(self, scorer: Scorer, rollouts: Rollouts, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """(T,) logprobs and (T,) entropies, or an empty tensor, of all completion tokens; dropout off."""
        logprobs = torch.empty(rollouts.completion_ids.numel(), device=self.device)
        entropy = torch.empty_like(logprobs) if with_entropy else logprobs[:0]
        device = next(scorer.model.parameters()).device  # of a reference it may be another
        with evaluating(scorer.model):
            for rows in self.passes.plan_everywhere(scorer, rollouts):
                index = to_device(rollouts.tokens_of(rows), self.device)
                scores = scorer.score(rollouts, rows, device, with_entropy)
                logprobs[index] = scores.logprobs.to(self.device)
                if scores.entropy is not None:
                    entropy[index] = scores.entropy.to(self.device)
        return logprobs, entropy

    def move_reference(self, step: int) -> None:
        """Every ref_model_sync_steps GRPO steps, mixes the policy into the reference."""
        if self.settings.sync_ref_model and step % self.settings.ref_model_sync_steps == 0:
            assert self.reference is not None
            self.reference.sync(self.policy.model, self.settings.ref_model_mixup_alpha)

    def state_dict(self) -> dict[str, Any]:
        """A reference that has moved."""
        return self.reference.state_dict() if self.reference else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it; the reference of an unfinished run must not be the restored policy."""
        if not self.objective.needs_reference:
            return
        if not self.policy.is_sharded:  # shards are restored after ``start``, which has made it
            self.reference = self.make_reference()  # weights that training started from: not restored yet
        assert self.reference is not None
        self.reference.load_state_dict(state)
