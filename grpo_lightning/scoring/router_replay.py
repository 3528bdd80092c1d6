"""Forward passes in which each token goes to the experts that the sampler gave it (R3, arXiv:2510.11370)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.numerics.routers import layers_with_routers, router_form
from grpo_lightning.types import Rollouts

ARGUMENT = "replayed_experts"
"""Of the decoder's forward pass: ``(tokens, layers, k)``."""


class RouterReplay:
    """Hooks by which the routers of a model take over the experts that a forward pass is given.

    A pass hands them to the decoder as a keyword, which reaches its layers, and each layer hands its own to its router.
    So they are there again where a layer is computed a second time for its gradient, and a pass without the keyword, such as
    one that samples, finds the routers as they were.

    Args:
        model: As for ``Scorer``; its routers have to be of a form that ``router_form`` knows.
    """

    def __init__(self, model: nn.Module) -> None:
        self.form = router_form(base_model(model).config)
        self._experts: dict[int, Tensor | None] = {}
        for n, (layer, router) in enumerate(layers_with_routers(model, self.form)):
            layer.register_forward_pre_hook(partial(self._receive, n), with_kwargs=True)
            if router is not None:
                router.register_forward_hook(partial(self._replay, n))

    def _receive(self, n: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        routes = kwargs.pop(ARGUMENT, None)
        self._experts[n] = None if routes is None else routes[:, n]
        return args, kwargs

    def _replay(self, n: int, router: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        experts = self._experts[n]
        return output if experts is None else self.form.with_experts(output, experts)


def experts_at(rollouts: Rollouts, source_index: Tensor, device: torch.device) -> dict[str, Tensor]:
    """The keyword of the decoder's pass.

    Args:
        rollouts: On the CPU, with routes.
        source_index: The place of each token of the pass among all prompt tokens, then all completion tokens; -1 for padding,
            whose experts do not matter.
        device: Where the pass runs.
    """
    assert rollouts.routed_experts is not None
    return {ARGUMENT: to_device(rollouts.routed_experts.at(source_index.flatten().clamp(min=0)), device)}
