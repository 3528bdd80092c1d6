"""How much each token drives the policy's entropy down."""

from __future__ import annotations

from torch import Tensor


def token_covariance(advantages: Tensor, logprobs: Tensor) -> Tensor:
    """``(K,)``: ``(A - mean A) * (logprob - mean logprob)``, whose sum entropy falls with (arXiv:2505.22617).

    Args:
        advantages: ``(K,)`` of all tokens of the step.
        logprobs: ``(K,)`` nats.
    """
    return (advantages - advantages.mean()) * (logprobs - logprobs.mean())
