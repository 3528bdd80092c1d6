"""Divergence of two models' next-token distributions from hidden states, without ever holding all logits of either."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo_lightning.numerics.logit_transform import LogitTransform
from grpo_lightning.numerics.logprobs import chunk_length
from grpo_lightning.numerics.output_head import OutputHead

Divergence = Literal["reverse_kl", "forward_kl", "jsd"]


@dataclass(frozen=True)
class Side:
    """One of the two models: T hidden states and the head behind them."""

    hidden: Tensor
    """(T, H) of this model; widths and devices may differ."""
    head: OutputHead
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside, the head is this model's: one set of weights may be two models."""

    def logits(self, part: slice, temperature: float, vocab_size: int) -> Tensor:
        """``(n, V)`` float32 (float64 for float64): what tokens are sampled from, unnormalised."""
        raw = self.head.module(self.hidden[part])[:, :vocab_size]
        transform = LogitTransform(temperature, self.head.logit_scale, self.head.softcap)
        # Cloned, because a head's output may be a view that autograd needs as it is.
        return transform.apply(raw.clone() if raw.dtype == torch.float64 else raw.float().clone())


@contextmanager
def without_autocast_cache() -> Iterator[None]:
    """Inside, autocast keeps no cast weights: those cast without gradient would be taken by the passes with it."""
    was_enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was_enabled)


def divergence_per_token(
    student: Side,
    teacher: Side,
    kind: Divergence,
    top_k: int | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """``(T,)`` nats: how far the student's distribution is from the teacher's at each token.

    One chunk of both models' logits exists at a time, and is computed again in the backward pass. The vocabulary is what
    both have: heads are often padded to different sizes.

    Args:
        student: Carries gradient.
        teacher: Carries none.
        kind: See ``divergence``.
        top_k: See there.
        temperature: That tokens are sampled at.
        chunk_tokens: Tokens of a chunk; by default what suits the device.
    """
    vocab_size = min(student.head.vocab_size, teacher.head.vocab_size)
    count = len(student.hidden)
    chunk = chunk_length(2 * vocab_size, student.hidden.device, chunk_tokens)

    def of_chunk(hidden: Tensor, part: slice) -> Tensor:
        with torch.no_grad(), without_autocast_cache(), teacher.context():
            expected = teacher.logits(part, temperature, vocab_size).log_softmax(-1).to(hidden.device)
        found = Side(hidden, student.head).logits(slice(None), temperature, vocab_size).log_softmax(-1)
        return divergence(found, expected, kind, top_k)

    parts = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    return torch.cat([checkpoint(of_chunk, student.hidden[part], part, use_reentrant=False) for part in parts])


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, top_k: int | None = None) -> Tensor:
    """``(n,)`` nats, not below 0, of ``(n, V)`` logprobs.

    ``reverse_kl`` is ``KL(student, teacher)``, which keeps to what the teacher would do; ``forward_kl`` is
    ``KL(teacher, student)``, which covers all of it; ``jsd`` the mean of both's divergence from their mean (GKD,
    arXiv:2306.13649, Eq. 1, with 1/2).

    Args:
        student: Carries gradient.
        teacher: Carries none.
        kind: Which.
        top_k: Tell only so many tokens apart, the teacher's likeliest, and take all others together as one more; None for
            all tokens. A lower bound of the divergence.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> divergence(p, q, "reverse_kl"), divergence(p, q, "forward_kl")
        (tensor([0.1438]), tensor([0.1308]))
    """
    if top_k is not None and top_k < teacher.shape[-1]:
        likeliest = teacher.topk(top_k, dim=-1).indices
        student, teacher = _with_rest(student.gather(-1, likeliest)), _with_rest(teacher.gather(-1, likeliest))
    if kind == "reverse_kl":
        return _kl(student, teacher)
    if kind == "forward_kl":
        return _kl(teacher, student)
    mean = torch.logaddexp(student, teacher) - math.log(2.0)
    return 0.5 * (_kl(student, mean) + _kl(teacher, mean))


def _kl(left: Tensor, right: Tensor) -> Tensor:
    return (left.exp() * (left - right)).sum(-1)


def _with_rest(logprobs: Tensor) -> Tensor:
    """With the logprob of everything else behind them."""
    rest = (1.0 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=torch.finfo(logprobs.dtype).eps)
    return torch.cat([logprobs, rest.log()], dim=-1)
