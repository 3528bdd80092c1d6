"""The reference of a run: which one there is, its passes, its moves, what a checkpoint keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.numerics.dtypes import DTYPES
from grpo_lightning.policy.reference import FrozenReference, Reference, make_reference
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training.passes import Passes
from grpo_lightning.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """The model that the policy is compared with.

    Args:
        sync_ref_model: Move the reference towards the policy every ref_model_sync_steps steps.
        ref_model_mixup_alpha: Share of the policy in that move.
        ref_model_sync_steps: Training steps between moves.
        ref_model_device: Where the copy lives that full training compares with (cpu, cuda:1); None for the policy's
            device. Adapters need no copy.
        ref_model_dtype: float32, bfloat16 or float16: what that copy is held in; None for the policy's.

    Raises:
        ValueError: For a device, dtype, share or interval that is none.
    """

    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512
    ref_model_device: str | None = None
    ref_model_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.ref_model_dtype is not None and self.ref_model_dtype not in DTYPES:
            raise ValueError(f"model.ref_model_dtype={self.ref_model_dtype!r} is unknown. Choose {', '.join(DTYPES)}.")
        if self.ref_model_sync_steps < 1:
            raise ValueError(
                f"model.ref_model_sync_steps={self.ref_model_sync_steps} is no interval. Choose 1 or more."
            )
        if not 0 <= self.ref_model_mixup_alpha <= 1:
            raise ValueError(f"model.ref_model_mixup_alpha={self.ref_model_mixup_alpha} is no share. Choose 0 to 1.")
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


class ReferencePasses:
    """Owns the reference, if there is one, and scores rollouts under it.

    Args:
        settings: See there.
        without: The setting for which there is no reference, in the words of the config (``model.beta=0``); None where
            there is one.
        way_out: What to set for one to be there.
        passes: Over the policy, whose weights may load later.

    Raises:
        ValueError: For settings of a reference that there is none of.
    """

    def __init__(self, settings: ReferenceSettings, without: str | None, way_out: str, passes: Passes) -> None:
        self.settings, self.needed, self.policy, self.passes = settings, without is None, passes.policy, passes
        self._check(without, way_out)
        self.reference: Reference | None = None
        self.scorer: Scorer | None = None
        self.is_for_fit = True
        """Whether what runs is a training, and not an evaluation, which leaves a reference that has moved as it is."""

    def _check(self, without: str | None, way_out: str) -> None:
        settings = self.settings
        if settings.sync_ref_model and without is not None:
            raise ValueError(f"model.sync_ref_model needs a reference: with {without} there is none. {way_out}")
        has_adapters = self.policy.settings.has_adapters
        for name in ("ref_model_device", "ref_model_dtype"):
            value = getattr(settings, name)
            if value is not None and (has_adapters or without is not None):
                reason = "adapters need no copy of the model" if has_adapters else f"{without} needs none"
                raise ValueError(f"model.{name}={value!r} has no effect: {reason}. Leave it out.")

    @property
    def copies_reference(self) -> bool:
        """Whether a copy of the policy is on its device, to compare with."""
        return isinstance(self.reference, FrozenReference) and self.settings.ref_model_device is None

    def start(self) -> None:
        """Copies the reference, once the weights are what training starts from."""
        if self.needed and self.reference is None:
            self.reference = self.make_reference()
        if self.reference is not None:
            self.reference.to(self.passes.device)
            is_shared = self.reference.model is self.policy.model
            self.scorer = self.passes.scorer if is_shared else self.passes.make_scorer(self.reference.model)

    def make_reference(self) -> Reference:
        """The policy as it is now, or, where ranks hold parts of it, as it was loaded or given."""
        device, dtype = self.settings.reference_device, self.settings.reference_dtype
        if self.policy.is_sharded and not self.policy.settings.has_adapters:  # shards cannot be copied as a module
            reference = FrozenReference(self.policy.load_model(), device, dtype, is_own=True)
            if self.policy.is_given:
                reference.take(self.policy.model)
            return reference
        is_continued = self.policy.settings.adapter_name_or_path is not None
        return make_reference(self.policy.model, self.settings.sync_ref_model, is_continued, device, dtype)

    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """(T,) nats, where the policy is: all completion tokens under the reference, no gradient.

        By its own routers, where there are any: experts that another model chose are not replayed.
        """
        assert self.reference is not None and self.scorer is not None
        rollouts = replace(rollouts, routed_experts=None)
        with self.reference.active():
            return self.passes.score(self.scorer, rollouts)[0]

    def move(self, step: int) -> None:
        """Every ref_model_sync_steps steps, mixes the policy into the reference."""
        if self.settings.sync_ref_model and step % self.settings.ref_model_sync_steps == 0:
            assert self.reference is not None
            self.reference.sync(self.policy.model, self.settings.ref_model_mixup_alpha)

    def state_dict(self) -> dict[str, Any]:
        """A reference that has moved."""
        return self.reference.state_dict() if self.reference else {}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores it; the reference of an unfinished run must not be the restored policy.

        Returns:
            Whether it is the checkpoint's now: False where an evaluation leaves one that there is, or has none.

        Raises:
            ValueError: If training is to go on from a checkpoint written before it has moved, and it has in this process.
        """
        if not self.needed:
            return True
        if self.reference is None and self.policy.is_sharded:  # ``start`` makes it first, but where none is read
            return False
        if self.reference is None:
            self.reference = self.make_reference()  # weights that training started from: not restored yet
        if not state and isinstance(self.reference, FrozenReference) and self.reference.was_synced:
            if not self.is_for_fit:
                return False
            raise ValueError(
                "The reference has moved since this checkpoint (model.sync_ref_model), which does not hold what it was. Make the "
                "module again, and go on with that one."
            )
        self.reference.load_state_dict(state)
        return True
