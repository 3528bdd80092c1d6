"""How much more likely the current policy makes a token, or a whole completion, than the one that starts the step."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.algorithm.segments import Segments

IMPORTANCE_LEVELS = ("token", "sequence", "sequence_token")


def token_ratio(log_ratio: Tensor) -> Tensor:
    """``(T,)``: ``pi(token) / pi_old(token)`` (arXiv:2402.03300, Eq. 3).

    Args:
        log_ratio: ``(T,)`` nats, current minus old logprobs; carries gradient.
    """
    return torch.exp(log_ratio)


def sequence_ratio(log_ratio: Tensor, segments: Segments) -> Tensor:
    """``(T,)``: the length-normalised ratio of the whole completion, on each of its tokens.

    GSPO (arXiv:2507.18071, Eq. 7). The gradient of one token's value reaches every token of its completion.
    """
    return segments.spread(torch.exp(segments.mean(log_ratio)))


def sequence_token_ratio(log_ratio: Tensor, segments: Segments) -> Tensor:
    """``(T,)``: the value of :func:`sequence_ratio` with the gradient of the token's own logprob.

    GSPO-token (arXiv:2507.18071, Eq. 14).
    """
    completion = segments.spread(segments.mean(log_ratio.detach()))
    return torch.exp(completion + log_ratio - log_ratio.detach())


def importance_ratio(log_ratio: Tensor, segments: Segments, level: str) -> Tensor:
    """``(T,)`` ratios at the level ``"token"``, ``"sequence"`` or ``"sequence_token"``.

    Raises:
        ValueError: If the level is none of the three.
    """
    if level == "token":
        return token_ratio(log_ratio)
    if level == "sequence":
        return sequence_ratio(log_ratio, segments)
    if level == "sequence_token":
        return sequence_token_ratio(log_ratio, segments)
    raise ValueError(f"importance level {level!r} is unknown. Choose token, sequence or sequence_token.")
