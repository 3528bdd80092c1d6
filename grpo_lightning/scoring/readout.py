"""What is read off the hidden states of a pass: the logprobs of completion tokens, through the model's output head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.load_balance import ExpertLoads
from grpo_lightning.numerics.logprobs import fused_head_obstacle, selected_logprobs_of_module
from grpo_lightning.numerics.output_head import OutputHead, base_model, output_head
from grpo_lightning.scoring.images.embedding import own_inputs
from grpo_lightning.types import Rollouts


class TokenScores(NamedTuple):
    """Scores of the completion tokens of some rows, in the order of ``rollouts.tokens_of(rows)``."""

    logprobs: Tensor
    """(T,) float32 nats, with gradient when grad mode is on."""
    entropy: Tensor | None
    """(T,) float32 nats; None unless asked for."""
    beside: Tensor | None = None
    """(T,): what ``beside`` made of the hidden states; None unless asked for."""
    loads: ExpertLoads | None = None
    """What the routers did with the tokens of these rows and their prompts; None unless asked for, or without routers."""


Beside = Callable[[Tensor, OutputHead], Tensor]
"""Makes a ``(T,)`` tensor of the hidden states that predict the tokens and the head behind them."""


class Readout(ABC):
    """What a forward pass is for. The scorer holds one, and asks it which part of the model gives hidden states."""

    keeps_logits = False
    """Whether a backward pass finds logits of the forward pass, for memory; never where there are none."""

    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """What gives hidden states; asked for at every pass, as adapters and wrappers come and go."""

    @abstractmethod
    def targets(self, rollouts: Rollouts, rows: Tensor, device: torch.device) -> Tensor:
        """What ``read`` looks for at the completion tokens of ``rows``, on the model's device before the pass starts."""

    @abstractmethod
    def read(self, hidden: Tensor, targets: Tensor, **options: Any) -> TokenScores:
        """The scores of ``(T, H)`` hidden states that predict the completion tokens."""

    @abstractmethod
    def read_plain(self, rollouts: Rollouts, rows: Tensor, targets: Tensor, **options: Any) -> TokenScores:
        """The same from the model's own forward pass, a sequence at a time: the definition, and the last resort."""

    @abstractmethod
    def output(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """What the model says at each place of ``(B, L)`` tokens: ``(B, L)`` or ``(B, L, V)``, in the unit of the scores."""

    @abstractmethod
    def slow_way(self, device: torch.device) -> str | None:
        """What of ``read`` is not done the fastest way on this device, and why."""


class LogprobReadout(Readout):
    """Logprobs and entropies of the completion tokens.

    Args:
        model: A causal language model.
        temperature: The sampling temperature.
        float32_head: Compute logits in float32.

    Raises:
        ValueError: For ``float32_head`` with an output head that is more than one matrix.
    """

    def __init__(self, model: nn.Module, temperature: float, float32_head: bool = False) -> None:
        self.model, self.temperature = model, temperature
        if float32_head and not output_head(model)[1].is_one_matrix:
            raise ValueError(
                "model.float32_head=true needs an output head of one matrix: this one has adapters, is sharded or is held "
                "in 4 bits. Leave the setting out."
            )
        self.float32_head = float32_head

    @property
    def decoder(self) -> nn.Module:
        """All but the output head."""
        return output_head(self.model)[0]

    def targets(self, rollouts: Rollouts, rows: Tensor, device: torch.device) -> Tensor:
        """``(T,)`` int64, the completion tokens."""
        return to_device(rollouts.completion_ids[rollouts.tokens_of(rows)], device)

    def read(
        self, hidden: Tensor, targets: Tensor, beside: Beside | None = None, beside_alone: bool = False, **options: Any
    ) -> TokenScores:
        """See ``Readout``; options are those of ``selected_logprobs``, and what is made of the same hidden states."""
        head = output_head(self.model)[1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not beside_alone):
            options |= {"temperature": self.temperature, "float32_head": self.float32_head}
            scores = head.logprobs(hidden, targets, keep_logits=self.keeps_logits, **options)
        return TokenScores(*scores, beside=None if beside is None else beside(hidden, head))

    def read_plain(self, rollouts: Rollouts, rows: Tensor, targets: Tensor, **options: Any) -> TokenScores:
        """Row by row, with all logits in the model's precision and a chunk at a time in float32."""
        plain = base_model(self.model)
        prompts, completions = rollouts.prompts(), rollouts.completions()
        logits = []
        for row in rows.tolist():
            prompt = prompts[int(rollouts.group[row])]
            input_ids = to_device(torch.cat([prompt, completions[row]])[None], targets.device)
            images = own_inputs(rollouts.images[int(rollouts.group[row])], input_ids) if rollouts.images else {}
            logits.append(plain(input_ids=input_ids, use_cache=False, **images).logits[0, len(prompt) - 1 : -1])
        flat = torch.cat(logits)
        options |= {"temperature": self.temperature, "float32_head": self.float32_head}
        # Cloned, because the head's output may be overwritten.
        scores = selected_logprobs_of_module(flat, torch.clone, targets, vocab_size=flat.shape[1], **options)
        return TokenScores(*scores)

    def output(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """``(B, L, V)`` nats, of every token."""
        logits = base_model(self.model)(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
        return cast(Tensor, logits).float().log_softmax(-1)

    def slow_way(self, device: torch.device) -> str | None:
        """Of the output head."""
        if not output_head(self.model)[1].is_one_matrix:
            return "a module that autograd differentiates, because it is more than one matrix"
        obstacle = fused_head_obstacle(device)
        return None if obstacle is None else f"softmax without fused kernels, because {obstacle}"
