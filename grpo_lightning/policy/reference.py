"""The reference policy that the KL term holds on to: no submodule, not wrapped, moved or saved by Lightning."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from grpo_lightning.distributed.sharding import copy_into, is_first_rank, whole
from grpo_lightning.policy.dtypes import cast_weights


class Reference(ABC):
    """A frozen policy to score with, held by a plain object so that Lightning does not see it."""

    model: nn.Module
    """What to score with, inside ``active``."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, ``model`` is the reference."""
        yield

    def to(self, device: torch.device) -> None:  # noqa: B027 - what shares the policy's weights is moved with it
        """Moves weights of its own to where the policy is, unless they have a place of their own."""

    @abstractmethod
    def sync(self, policy: nn.Module, mixup_alpha: float) -> None:
        """Moves the reference towards the policy: ``alpha * policy + (1 - alpha) * reference``.

        The soft update of TR-DPO (arXiv:2404.09656), Eq. 4.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run cannot read from ``model_name_or_path``; often nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - nothing by default
        """Restores it."""


def make_reference(
    policy: nn.Module,
    moves: bool = False,
    is_continued: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Reference:
    """The policy as it is now, with as few weights of its own as possible.

    Args:
        policy: What training starts from.
        moves: Whether ``sync`` will be called.
        is_continued: Whether the policy starts with a trained adapter, which belongs to the reference too.
        device: Of a full copy; None for the policy's.
        dtype: Of a full copy; None for the policy's.
    """
    if not isinstance(policy, PeftModel):
        return FrozenReference(policy, device, dtype)
    return AdapterReference(policy) if moves or is_continued else BaseReference(policy)


class FrozenReference(Reference):
    """A copy of the whole policy as it was at the start of training.

    Args:
        policy: Copied, not kept.
        device: Where the copy lives; the policy's device by default.
        dtype: What the copy is held in; the policy's dtype by default.
        is_own: The model was loaded for this purpose: use it, do not copy it.
    """

    def __init__(
        self,
        policy: nn.Module,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        is_own: bool = False,
    ) -> None:
        model = policy if is_own else copy.deepcopy(policy)
        self.model = model.requires_grad_(False).eval().to(device=device)
        if dtype is not None:
            cast_weights(self.model, dtype)
        self.device = device
        self.was_synced = False

    def to(self, device: torch.device) -> None:
        """Moves the copy, unless it was given a device."""
        self.model.to(self.device or device)

    @torch.no_grad()
    def take(self, policy: nn.Module) -> None:
        """Takes the weights of a policy that is in the same parts."""
        for mine, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            mine.copy_(theirs.to(mine))

    @torch.no_grad()
    def sync(self, policy: nn.Module, mixup_alpha: float) -> None:
        """See ``Reference.sync``."""
        for mine, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            mine.lerp_(theirs.to(mine), mixup_alpha)
        self.was_synced = True

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights if they have moved away from model_name_or_path, else nothing."""
        if not self.was_synced:
            return {}
        wholes = {name: whole(tensor) for name, tensor in self.model.state_dict().items()}
        return wholes if is_first_rank() else {}  # checkpoints take it from there

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores moved weights."""
        for name, tensor in self.model.state_dict().items() if state else ():
            copy_into(tensor, state[name])
        self.was_synced = bool(state)


class BaseReference(Reference):
    """The policy with its adapter off: the base, without a second copy of anything."""

    def __init__(self, policy: PeftModel) -> None:
        self.model: PeftModel = policy

    @contextmanager
    def active(self) -> Iterator[None]:
        """Adapters off inside, trained heads, embeddings and token rows included."""
        torch.clear_autocast_cache()
        with self.model.disable_adapter():
            yield

    def sync(self, policy: nn.Module, mixup_alpha: float) -> None:
        """The base does not move.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("A reference that is the bare base cannot move. Make it with moves=True.")


class AdapterReference(Reference):
    """The policy with a second set of adapter weights, which starts as the policy's and may follow it.

    Mixing happens on the adapter's own tensors. The product of two mixed LoRA matrices is not the mix of their
    products, so with ``mixup_alpha`` below 1 the reference lies near, not on, the line between the two policies.
    """

    def __init__(self, policy: PeftModel) -> None:
        self.model: PeftModel = policy
        self.weights = {name: p.detach().clone() for name, p in self._trained().items()}
        """The second set: of each trained parameter, by its name in the policy."""

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @contextmanager
    def active(self) -> Iterator[None]:
        """The second set is in the policy's place inside; no tensor is copied."""
        parameters = self._trained()
        theirs = {name: p.data.clone() if isinstance(p, DTensor) else p.data for name, p in parameters.items()}
        self._put(parameters, self.weights)
        try:
            yield
        finally:
            self._put(parameters, theirs)

    @staticmethod
    def _put(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
        torch.clear_autocast_cache()  # autocast keeps the weights it has cast, by parameter
        for name, parameter in parameters.items():
            if isinstance(parameter, DTensor):  # FSDP2 gathers from the memory that it knows
                with torch.no_grad():
                    parameter.copy_(values[name])
            else:
                parameter.data = values[name]

    def to(self, device: torch.device) -> None:
        """Moves the second set, in the dtype that the policy's have now."""
        for name, parameter in self._trained().items():
            self.weights[name] = self.weights[name].to(device, parameter.dtype)

    @torch.no_grad()
    def sync(self, policy: nn.Module, mixup_alpha: float) -> None:
        """See ``Reference.sync``."""
        for name, parameter in self._trained().items():
            self.weights[name].lerp_(parameter, mixup_alpha)

    def state_dict(self) -> dict[str, Tensor]:
        """The second set: small, and a resumed run cannot make it again once it has moved."""
        return {name: whole(tensor) for name, tensor in self.weights.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the second set."""
        for name, tensor in state.items():
            copy_into(self.weights[name], tensor)
