"""Backward passes of other libraries' kernels that a graph outlives, as where a callback asks autograd for a norm before training does.

Liger's gated activations write their gradients over what the forward pass has saved, unseen by torch: a second backward
pass over the same graph (``retain_graph=True``) would take gradients for activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


def leave_saved(modules: Iterable[nn.Module]) -> None:
    """Has autograd functions beside the forward passes of modules work on copies of what is saved, where the graph is kept.

    Args:
        modules: Whose forward pass has been replaced by one of another source file.
    """
    for module in modules:
        for function in list(module.__dict__["forward"].__func__.__globals__.values()):
            if isinstance(function, type) and issubclass(function, Function) and function is not Function:
                _leave_saved(function)


def _leave_saved(function: Any) -> None:
    overwriting = function.backward
    if overwriting.__module__ == __name__:
        return

    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        is_kept = torch._C._autograd._get_current_graph_task_keep_graph()
        return overwriting(_WithCopies(ctx) if is_kept else ctx, *gradients)

    function.backward = staticmethod(backward)


class _WithCopies:
    """What an autograd function has noted for its backward pass, with copies of the tensors."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """Each time new ones."""
        return tuple(None if tensor is None else tensor.clone() for tensor in self._ctx.saved_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)
