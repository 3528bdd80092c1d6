"""The experts that an engine's routers chose, as rollouts have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from grpo_lightning.generation.vllm.compat import why_no_routed_experts
from grpo_lightning.numerics.routers import route_dtype, router_form
from grpo_lightning.types import RoutedExperts


class ToldExperts:
    """Whether an engine tells which experts each token is given (model.router_replay)."""

    def __init__(self) -> None:
        self.count: int | None = None
        """E, where it does."""

    def ask(self, config: PretrainedConfig) -> None:
        """Has them told from now on; see ``Generator.record_routed_experts``."""
        reason = why_no_routed_experts()
        if reason is not None:
            raise ValueError(f"model.router_replay=true: {reason}. Use TransformersGenerator, or router_replay=false.")
        self.count = router_form(config).num_experts

    def engine_arguments(self) -> dict[str, Any]:
        """Of ``vllm.LLM``."""
        return {} if self.count is None else {"enable_return_routed_experts": True}


def engine_routes(
    found: Sequence[Any], prompt_lengths: Sequence[int], completion_lengths: Sequence[int], num_experts: int
) -> RoutedExperts:
    """Of B prompts, each from its first completion, and of N completions in prompt-major order.

    Args:
        found: N arrays ``(prompt and completion tokens but the last, L, k)``, as ``CompletionOutput.routed_experts``.
        prompt_lengths: B.
        completion_lengths: N.
        num_experts: E.

    Raises:
        RuntimeError: If the engine left some out.
    """
    size = len(completion_lengths) // max(len(prompt_lengths), 1)
    dtype = route_dtype(num_experts)
    prompts: list[Tensor] = []
    completions: list[Tensor] = []
    for n, (routes, length) in enumerate(zip(found, completion_lengths, strict=True)):
        prompt = prompt_lengths[n // size]
        if routes is None or len(routes) != prompt + length - 1:
            raise RuntimeError(
                f"vLLM told the experts of {0 if routes is None else len(routes)} tokens of completion {n}, which has read "
                f"{prompt + length - 1} with its prompt. Set model.router_replay=false for this model."
            )
        of_all = torch.from_numpy(routes.astype("int16")).to(dtype)
        if n % size == 0:
            prompts.append(of_all[:prompt])
        unread = of_all.new_full((1, *of_all.shape[1:]), torch.iinfo(dtype).max)
        completions += [of_all[prompt:], unread]
    return RoutedExperts(torch.cat(prompts), torch.cat(completions))
