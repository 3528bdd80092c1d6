"""Where this package changes what vLLM's models compute, to what transformers' compute; each change is listed in ``patch_list.py``.

Classes are changed in their process for good: an engine's in this one, or a server's workers.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CPU_ROUTER = "vllm.model_executor.layers.fused_moe.router.cpu_router"
"""From 0.30 on."""
FORMER_ROUTERS = (
    "vllm.model_executor.layers.fused_moe.cpu_fused_moe",
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe",
)
"""To 0.27, and of 0.28 and 0.29."""
SCORES_WITH_BIASES = ("softmax", "sigmoid")
WIDENED = ("cohere2", "cohere2_moe")
"""By ``model_type`` of the text: whose windows vLLM makes one token wider than the configuration says."""


def compute_as_transformers() -> None:
    """From here on, vLLM's models of this process compute what the policy does; calling it again changes nothing."""
    rotate_heads_in_an_axis()
    route_by_biases()
    keep_windows()
    keep_precision_of_activations()


def _once(method: Any, wrapped: Callable[[Any], Any]) -> Any:
    """``wrapped(method)``, or the method itself if that was done for an engine before."""
    if hasattr(method, "instead_of"):
        return method
    changed = wrapped(method)
    changed.instead_of = method
    return changed


def rotate_heads_in_an_axis() -> None:
    """From here on, vLLM's rotary embedding on a CPU takes queries and keys with an axis of heads, as LFM2 gives them.

    Its kernel counts heads by the size of the last axis: it turned the first rows, by the positions of others, and no more.
    """
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

    def flat(rotate: Any) -> Any:
        def rotate_flat(self: Any, positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
            if query.ndim < positions.ndim + 2:
                return rotate(self, positions, query, key)
            turned = rotate(self, positions, query.flatten(-2), None if key is None else key.flatten(-2))
            return turned[0].view(query.shape), None if key is None else turned[1].view(key.shape)

        return rotate_flat

    rotary_class: Any = RotaryEmbedding
    rotary_class.forward_cpu = _once(rotary_class.forward_cpu, flat)


def route_by_biases() -> None:
    """From here on, experts are chosen by their scores and correction biases on a CPU too (ERNIE 4.5 MoE).

    vLLM adds the biases there for experts in groups alone, and leaves them out without a word elsewhere: one group is all experts.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    if importlib.util.find_spec(CPU_ROUTER) is None:
        _route_by_biases_before_0_30()
        return
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    def grouped(init: Any) -> Any:
        def init_grouped(self: Any, *args: Any, **options: Any) -> None:
            init(self, *args, **(options | _in_one_group(options)))

        return init_grouped

    router_class: Any = CPURouter
    router_class.__init__ = _once(router_class.__init__, grouped)


def _route_by_biases_before_0_30() -> None:
    """There a function chooses."""
    name = next(name for name in FORMER_ROUTERS if importlib.util.find_spec(name) is not None)
    module: Any = importlib.import_module(name)

    def grouped(select: Any) -> Any:
        return lambda *args, **options: select(*args, **(options | _in_one_group(options)))

    module.select_experts = _once(module.select_experts, grouped)


def _in_one_group(options: dict[str, Any]) -> dict[str, Any]:
    """What a router without groups, that has biases, is to be given besides; nothing for others.

    Args:
        options: Arguments by name, as vLLM gives all of these.
    """
    has_groups = options.get("use_grouped_topk") or options.get("custom_routing_function") is not None
    is_known = options.get("scoring_func", "softmax") in SCORES_WITH_BIASES
    if options.get("e_score_correction_bias") is None or has_groups or not is_known:
        return {}
    return {"use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1}


def keep_windows() -> None:
    """From here on, sliding windows are as long as the configuration says, as in training (Cohere 2).

    From 0.29 on vLLM adds a token to them, for what its authors say that these models were pretrained with. transformers does not.
    """
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.layers.attention import Attention

    def plain(init: Any) -> Any:
        def init_plain(self: Any, *args: Any, **options: Any) -> None:
            if options.get("per_layer_sliding_window") is not None:
                text = get_current_vllm_config().model_config.hf_text_config
                if text.model_type in WIDENED:
                    options["per_layer_sliding_window"] = text.sliding_window
            init(self, *args, **options)

        return init_plain

    attention_class: Any = Attention
    attention_class.__init__ = _once(attention_class.__init__, plain)


def keep_precision_of_activations() -> None:
    """From here on, the weights of xIELU (Apertus) have the engine's dtype: vLLM makes them bfloat16 in all engines."""
    from vllm.model_executor.layers.activation import XIELU

    def precise(init: Any) -> Any:
        def init_precise(self: Any, *args: Any, **options: Any) -> None:
            init(self, *args, **({"dtype": torch.get_default_dtype()} | options))

        return init_precise

    activation_class: Any = XIELU
    activation_class.__init__ = _once(activation_class.__init__, precise)
