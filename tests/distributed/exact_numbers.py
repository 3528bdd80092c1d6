"""Runs whose every float32 is a float64, for tests that compare runs of different shapes: what then differs is no rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from grpo_lightning import GRPOModule


class FloatsAreDoubles(TorchFunctionMode):
    """Inside, torch makes and computes in float64 wherever float32 is asked for, or is the default.

    Norms, routers, rotary embeddings and losses ask for float32 by name, so a policy of float64 weights alone would still
    round. For this thread, and for code that calls torch from Python.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        found = func(*map(_wider, args), **{name: _wider(value) for name, value in (kwargs or {}).items()})
        return found.double() if func in _device_constructors() and found.dtype == torch.float32 else found


def _wider(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def load_doubles(module: GRPOModule) -> None:
    """Has the module load its policy in float64, with experts that can be computed in it."""
    load = module.policy.load_model

    def load_model() -> Any:
        model = load().double()
        if getattr(model.config, "_experts_implementation", None) is not None:
            model.set_experts_implementation("eager")  # torch's grouped product takes no float64
        return model

    module.policy.load_model = load_model  # type: ignore[method-assign]
