"""By which kernels torch's Adam steps: fused ones on a GPU, unless a config says otherwise, after a resume too."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FUSED = (torch.optim.Adam, torch.optim.AdamW)
CHOICES = ("fused", "foreach", "capturable", "differentiable")
"""Arguments by which a config says itself how a step is computed."""
DEVICE_TYPES = ("cuda",)
"""Of weights whose step is fused."""


def settle_kernels(optimizer: Optimizer) -> Optimizer:
    """Lets torch's Adam and AdamW step by fused kernels, as transformers' Trainer does, where nobody chose any.

    torch's own choice on a GPU, ``foreach``, reads and writes the weights and both moments a dozen times a step: 13 ms of
    kernels and 5 ms of launches for 0.5B parameters in float32 (H200), where one pass is 3 ms of memory traffic.
    A state that is loaded brings the kernels that it was saved with; this run's stay, and the counts of steps lie where they
    want them: ``foreach`` would wait for the GPU at each weight.

    Args:
        optimizer: As its factory made it; others than torch's two are left alone.

    Returns:
        The same object.
    """
    if type(optimizer) not in FUSED:
        return optimizer
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    fits = all(weight.device.type in DEVICE_TYPES and weight.is_floating_point() for weight in weights)
    if fits and not optimizer.state and not any(map(_is_chosen, optimizer.param_groups)):
        for options in (optimizer.defaults, *optimizer.param_groups):
            options["fused"] = True
    own = [{name: group[name] for name in CHOICES} for group in optimizer.param_groups]
    optimizer.register_load_state_dict_post_hook(partial(_keep_own, own))
    return optimizer


def _is_chosen(group: dict[str, Any]) -> bool:
    """Whether a group's arguments say how to step; torch leaves None for its own choice of the first two."""
    return any(group[name] is not None for name in CHOICES[:2]) or any(group[name] for name in CHOICES[2:])


def _keep_own(own: list[dict[str, Any]], optimizer: Optimizer) -> None:
    """Sets the choices of this run over those of a state that was loaded."""
    for group, choice in zip(optimizer.param_groups, own, strict=False):
        group |= choice
        on_device = group["fused"] or group["capturable"]
        for weight in group["params"]:
            step = optimizer.state[weight].get("step") if weight in optimizer.state else None
            if isinstance(step, Tensor):
                optimizer.state[weight]["step"] = step.to(weight.device if on_device else "cpu")
