"""The Bradley-Terry loss of reward models."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from grpo_lightning.algorithm.preferences.base import delta


def bradley_terry_loss(rewards: Tensor, margins: Tensor | None = None, centering: float = 0.0) -> Tensor:
    """``-log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2``, one value per pair.

    The chance that people prefer one text to another grows with the difference of their rewards (Bradley and Terry, 1952).
    Margins are those of Llama 2 (arXiv:2307.09288, Eq. 2); the second term keeps rewards, which the first one leaves free to
    drift, around 0 (arXiv:2312.09244, Eq. 2).

    Args:
        rewards: ``(2P,)``, of pair p the chosen text's at 2p and the rejected one's at 2p + 1; carries gradient.
        margins: ``(P,)``: by how much the chosen one should earn more.
        centering: Weight of the second term.

    Example:
        >>> import torch
        >>> bradley_terry_loss(torch.tensor([1.0, -1.0]), centering=0.5)
        tensor([0.1269])
    """
    gained = delta(rewards)
    loss = -logsigmoid(gained if margins is None else gained - margins)
    return loss + centering * (rewards[0::2] + rewards[1::2]).square() if centering else loss
