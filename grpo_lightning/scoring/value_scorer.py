"""A sequence classifier and texts to one number per text, packed as completions are, with what texts share computed once."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.scoring.forward import TokenScores
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts


class ValueScorer(Scorer):
    """Scores whole texts under a model of ``AutoModelForSequenceClassification`` with one output.

    A text is a prompt and a completion whose last token stands behind the text: the hidden state that would predict it is
    that of the text's last token, which the model's own forward pass takes too. ``score(...).logprobs`` holds one value
    per text, ``(M,)``.
    """

    def _decoder(self) -> nn.Module:
        base = base_model(self.model)
        return cast(nn.Module, getattr(base, base.base_model_prefix))

    def _head(self) -> nn.Module:
        return cast(nn.Module, base_model(self.model).score)

    def _slow_head(self, device: torch.device) -> dict[str, str]:
        return {}

    def _score(self, rollouts: Rollouts, rows: Tensor, device: torch.device, options: dict[str, Any]) -> TokenScores:
        last = rollouts.completion_lengths[rows].cumsum(0) - 1
        hidden = self._decode(rollouts, rows, device).hidden[last.to(device)]
        return TokenScores(self._values(hidden), None)

    def _score_full_logits(
        self, rollouts: Rollouts, rows: Tensor, targets: Tensor, options: dict[str, Any], with_loads: bool = False
    ) -> TokenScores:
        """Text by text."""
        decoder, prompts, completions = self._decoder(), rollouts.prompts(), rollouts.completions()
        last = []
        for row in rows.tolist():
            text = torch.cat([prompts[int(rollouts.group[row])], completions[row][:-1]]).to(targets.device)
            last.append(decoder(input_ids=text[None], use_cache=False).last_hidden_state[0, -1])
        return TokenScores(self._values(torch.stack(last)), None)

    def _values(self, hidden: Tensor) -> Tensor:
        head = self._head()
        own = [p for p in head.parameters() if p.requires_grad] or list(head.parameters())
        # Trained beside adapters it is held in float32, on hidden states of a frozen base in half precision.
        values = head(hidden.to(own[0].dtype))[:, 0]
        return values if values.dtype == torch.float64 else values.float()
