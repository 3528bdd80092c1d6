"""Estimates of KL(policy || reference) from the sampled tokens alone (Schulman, 2020, "Approximating KL divergence").

With ``model.use_bias_correction_kl`` an estimate is multiplied by the importance ratio, gradient included, so that the
gradient of k1 and k3 is that of the reverse KL, also for samples of an older policy (DeepSeek-V3.2, arXiv:2512.02556).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from grpo_lightning.algorithm.choice import chosen, made

KLEstimator = Callable[[Tensor, Tensor], Tensor]
"""From ``(T,)`` logprobs of the policy, which carry gradient, and of the reference to ``(T,)`` nats."""


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``(T,)`` nats: ``logprob - ref``. Unbiased, often negative; without the ratio its gradient is 0 on average."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``(T,)`` nats: ``(logprob - ref)**2 / 2``. Biased; on-policy, its plain gradient is that of the reverse KL."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``(T,)`` nats: ``exp(q) - q - 1`` with ``q = ref - logprob`` (DeepSeekMath, arXiv:2402.03300, Eq. 4).

    Never negative, unbiased on the policy's own samples.

    Args:
        logprobs: ``(T,)`` nats, current policy; carries gradient.
        ref_logprobs: ``(T,)`` nats, the frozen reference.
    """
    gap = ref_logprobs - logprobs
    return torch.exp(gap) - gap - 1.0


KL_ESTIMATORS: dict[str, Any] = {"k1": k1, "k2": k2, "k3": k3}


def kl_estimator(choice: str | KLEstimator) -> KLEstimator:
    """The estimator of that name or import path; a function is taken as it is.

    Raises:
        ValueError: If nothing is found there.
    """
    name, found, settings = chosen("kl_estimator", choice, KL_ESTIMATORS)
    if isinstance(found, type):
        found = made("kl_estimator", name, found, settings)
    elif settings:
        raise ValueError(f"model.kl_estimator.init_args={settings!r} has no effect: {name} is a function.")
    return cast(KLEstimator, found)
