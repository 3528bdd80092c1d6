"""One number per text, off the hidden states of a sequence classifier."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.dtypes import at_least_float32
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.scoring.readout import Readout, TokenScores
from grpo_lightning.types import Rollouts


class ValueReadout(Readout):
    """Values of whole texts under a model of ``AutoModelForSequenceClassification`` with one output.

    A text is a prompt and a completion whose last token stands behind the text: the hidden state that would predict it is
    that of the text's last token, which the model's own forward pass takes too. ``logprobs`` of the scores holds one value
    per text, ``(M,)``.

    Args:
        model: The classifier, or a PEFT model of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def decoder(self) -> nn.Module:
        """All but the head of one output."""
        base = base_model(self.model)
        return cast(nn.Module, getattr(base, base.base_model_prefix))

    def targets(self, rollouts: Rollouts, rows: Tensor, device: torch.device) -> Tensor:
        """``(M,)`` int64, where among the completion tokens each text ends."""
        return to_device(rollouts.completion_lengths[rows].cumsum(0) - 1, device)

    def read(self, hidden: Tensor, targets: Tensor, **options: Any) -> TokenScores:
        """See ``Readout``; there are no options."""
        return TokenScores(self._values(hidden[targets]), None)

    def read_plain(self, rollouts: Rollouts, rows: Tensor, targets: Tensor, **options: Any) -> TokenScores:
        """Text by text."""
        decoder, prompts, completions = self.decoder, rollouts.prompts(), rollouts.completions()
        last = []
        for row in rows.tolist():
            text = torch.cat([prompts[int(rollouts.group[row])], completions[row][:-1]]).to(targets.device)
            last.append(decoder(input_ids=text[None], use_cache=False).last_hidden_state[0, -1])
        return TokenScores(self._values(torch.stack(last)), None)

    def output(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """``(B, L)``, the value of the text that ends there."""
        states = self.decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return self._values(states)

    def slow_way(self, device: torch.device) -> str | None:
        """None: one row of a matrix has no faster way."""
        return None

    def _values(self, hidden: Tensor) -> Tensor:
        head = cast(nn.Module, base_model(self.model).score)
        own = [p for p in head.parameters() if p.requires_grad] or list(head.parameters())
        # Trained beside adapters it is held in float32, on hidden states of a frozen base in half precision.
        return at_least_float32(head(hidden.to(own[0].dtype))[..., 0])
