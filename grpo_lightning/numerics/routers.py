"""The routers of a mixture of experts: where they are, what they say, and which experts a token is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from grpo_lightning.numerics.output_head import base_model

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def has_experts(config: Any) -> bool:
    """Whether layers have experts.

    Args:
        config: Of the language model.
    """
    return any(getattr(config, name, None) for name in EXPERT_COUNTS)


@dataclass(frozen=True)
class RouterForm:
    """How the router class of an architecture answers: a tuple of logits, gate weights and chosen experts, in some order."""

    router_class: type[nn.Module]
    logits: int
    """Place in the tuple of ``(tokens, E)``."""
    weights: int
    """Place of ``(tokens, k)``."""
    experts: int
    """Place of ``(tokens, k)`` int64."""
    renormalises: bool
    """Whether the weights of a token's k experts add up to 1; otherwise they are probabilities among all E."""
    num_experts: int

    def with_experts(self, output: tuple[Tensor, ...], experts: Tensor) -> tuple[Tensor, ...]:
        """The router's answer with other experts, weighed by its own logits, which carry the gradient.

        Rollout Routing Replay of "Stabilizing MoE Reinforcement Learning by Aligning Training and Inference Routers"
        (arXiv:2510.11370): the mask of the sampler, the softmax of the trainer.

        Args:
            output: Of the router.
            experts: ``(tokens, k)``; a number of E or more keeps the token's own experts.
        """
        logits, weights, own = output[self.logits], output[self.weights], output[self.experts]
        experts = experts.to(own)
        chosen = torch.where((experts < self.num_experts).all(-1, keepdim=True), experts, own)
        answer = list(output)
        answer[self.experts] = chosen
        answer[self.weights] = gate_weights(logits, chosen, self.renormalises).to(weights.dtype)
        return tuple(answer)


def gate_weights(logits: Tensor, experts: Tensor, renormalises: bool) -> Tensor:
    """``(tokens, k)`` float32: the softmax of ``logits`` at ``experts``, over them alone or over all.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
        >>> gate_weights(logits, torch.tensor([[3, 1]]), True).tolist()
        [[0.5, 0.5]]
        >>> gate_weights(logits, torch.tensor([[3, 1]]), False).tolist()
        [[0.25, 0.25]]
    """
    if renormalises:
        return logits.float().gather(-1, experts).softmax(-1)
    return logits.float().softmax(-1).gather(-1, experts)


def router_form(config: PretrainedConfig) -> RouterForm:
    """How the routers of this architecture answer, tried out on one of random weights; nothing of the model is loaded.

    Raises:
        ValueError: If it has none, or weighs experts otherwise than by the softmax of its logits.
    """
    name = config.model_type
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    recorder = (getattr(model_class, "_can_record_outputs", None) or {}).get("router_logits")
    router_class = getattr(recorder, "target_class", None)
    if recorder is None or router_class is None:
        raise ValueError(f"{name} has no routers in transformers that say which experts a token is given")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        text = config.get_text_config()
        router = router_class(text)
        for weight in router.parameters():  # logits of about 1: of sharp ones, the first k add up to 1 in any form
            nn.init.normal_(weight, std=text.hidden_size**-0.5)
        with torch.no_grad():
            output = router(torch.randn(16, text.hidden_size, dtype=next(router.parameters()).dtype))
    return _form(name, router_class, output, recorder.index)


def _form(name: str, router_class: type[nn.Module], output: Any, logits: int) -> RouterForm:
    is_triple = isinstance(output, tuple) and len(output) == 3 and all(isinstance(part, Tensor) for part in output)
    if not is_triple or len({part.ndim for part in output}) != 1:
        raise ValueError(f"a {router_class.__name__} of {name} does not answer with logits, weights and experts")
    others = [place for place in range(3) if place != logits]
    experts = next((place for place in others if not output[place].is_floating_point()), None)
    if experts is None:
        raise ValueError(f"a {router_class.__name__} of {name} does not say which experts it chose")
    (weights,) = (place for place in others if place != experts)
    for renormalises in (True, False):
        expected = gate_weights(output[logits], output[experts], renormalises)
        if expected.shape == output[weights].shape and torch.allclose(
            output[weights].float(), expected, rtol=1e-3, atol=1e-4
        ):
            return RouterForm(router_class, logits, weights, experts, renormalises, output[logits].shape[-1])
    raise ValueError(f"a {router_class.__name__} of {name} weighs experts otherwise than by the softmax of its logits")


def route_dtype(num_experts: int) -> torch.dtype:
    """The smallest dtype for numbers of experts whose largest value is none of them: it says "not recorded"."""
    return torch.uint8 if num_experts < torch.iinfo(torch.uint8).max else torch.int16


def layers_with_routers(model: nn.Module, form: RouterForm) -> list[tuple[nn.Module, nn.Module | None]]:
    """Each layer of the decoder with its router; None of a layer without experts."""
    layers = list(base_model(model).get_decoder().layers)
    return [(layer, next((m for m in layer.modules() if isinstance(m, form.router_class)), None)) for layer in layers]


class RouteRecorder:
    """Which experts the routers of a model chose in its last forward pass."""

    def __init__(self, num_layers: int, form: RouterForm) -> None:
        self.form, self._chosen = form, [torch.empty(0, dtype=torch.int64)] * num_layers

    def note(self, layer: int, module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
        """A forward hook of the router of ``layer``."""
        self._chosen[layer] = output[self.form.experts]

    def take(self) -> Tensor:
        """``(tokens, layers, k)`` in ``route_dtype``; 0 in layers without experts."""
        shape = max(self._chosen, key=Tensor.numel)
        filled = [chosen if chosen.numel() else torch.zeros_like(shape) for chosen in self._chosen]
        return torch.stack(filled, 1).to(route_dtype(self.form.num_experts))


@contextmanager
def recorded_routes(model: nn.Module, form: RouterForm) -> Iterator[RouteRecorder]:
    """A recorder of what the routers do inside the block."""
    layers = layers_with_routers(model, form)
    recorder = RouteRecorder(len(layers), form)
    hooks = [
        router.register_forward_hook(partial(recorder.note, n))
        for n, (_, router) in enumerate(layers)
        if router is not None
    ]
    try:
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()
