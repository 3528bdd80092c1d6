"""Divergence of two models' next-token distributions from hidden states, without ever holding all logits of either."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpo_lightning.numerics.divergence_formulas import Divergence
from grpo_lightning.numerics.divergence_function import divergence_of_matrix
from grpo_lightning.numerics.dtypes import at_least_float32
from grpo_lightning.numerics.logit_transform import LogitTransform
from grpo_lightning.numerics.logprobs import chunk_length, is_fused, product_dtype
from grpo_lightning.numerics.output_head import OutputHead


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
        # Cloned, because a head's output may be a view that autograd needs as it is.
        return self.transform(temperature).apply(at_least_float32(raw).clone())

    def transform(self, temperature: float) -> LogitTransform:
        """From the head's output to what tokens are sampled from."""
        return LogitTransform(temperature, self.head.logit_scale, self.head.softcap)


@dataclass(frozen=True)
class Likeliest:
    """All that is known of a model that shows its likeliest tokens alone, at each of T tokens."""

    token_ids: Tensor
    """(T, K) int64."""
    logprobs: Tensor
    """(T, K) float32 nats: of the whole vocabulary, so that they do not add up to 1."""

    def rows(self, index: Tensor | slice) -> Likeliest:
        """Of these tokens alone."""
        return Likeliest(self.token_ids[index], self.logprobs[index])


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
    teacher: Side | Likeliest,
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
        teacher: Carries none. Of a ``Likeliest`` the divergence is that of ``to_likeliest``.
        kind: See ``divergence``.
        top_k: See there; a ``Likeliest`` has its own.
        temperature: That tokens are sampled at.
        chunk_tokens: Tokens of a chunk; by default what suits the device.
    """
    own_size = student.head.vocab_size
    vocab_size = own_size if isinstance(teacher, Likeliest) else min(own_size, teacher.head.vocab_size)
    count = len(student.hidden)
    if student.head.is_one_matrix and not isinstance(teacher, Likeliest) and (top_k is None or top_k >= vocab_size):
        return _of_matrix(student, teacher, kind, temperature, vocab_size, chunk_tokens)
    chunk = chunk_length(2 * vocab_size, student.hidden.device, chunk_tokens)

    def of_chunk(hidden: Tensor, part: slice) -> Tensor:
        if isinstance(teacher, Likeliest):
            found = Side(hidden, student.head).logits(slice(None), temperature, vocab_size).log_softmax(-1)
            return to_likeliest(found, teacher.rows(part), kind)
        with torch.no_grad(), without_autocast_cache(), teacher.context():
            expected = teacher.logits(part, temperature, vocab_size).log_softmax(-1).to(hidden.device)
        found = Side(hidden, student.head).logits(slice(None), temperature, vocab_size).log_softmax(-1)
        return divergence(found, expected, kind, top_k)

    parts = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    return torch.cat([checkpoint(of_chunk, student.hidden[part], part, use_reentrant=False) for part in parts])


def _of_matrix(
    student: Side, teacher: Side, kind: Divergence, temperature: float, vocab_size: int, chunk_tokens: int | None
) -> Tensor:
    """The same for a student's head of one matrix: by formulas and fused kernels, without autograd's copies of logits."""
    head = cast(nn.Linear, student.head.module)
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    if vocab_size < len(weight):
        weight, bias = weight[:vocab_size], None if bias is None else bias[:vocab_size]
    kind_of_device = teacher.hidden.device.type
    is_autocast, dtype = torch.is_autocast_enabled(kind_of_device), torch.get_autocast_dtype(kind_of_device)

    def expected(part: slice) -> Tensor:
        autocast = torch.autocast(kind_of_device, dtype, is_autocast, cache_enabled=False)
        with torch.no_grad(), autocast, teacher.context():
            logits: Tensor = teacher.head.module(teacher.hidden[part])[:, :vocab_size]
            return logits if is_fused(logits) else logits.clone()  # which the formulas overwrite

    hidden = student.hidden.to(product_dtype(student.hidden, weight, False))
    transforms = student.transform(temperature), teacher.transform(temperature)
    chunk = chunk_length(2 * vocab_size, hidden.device, chunk_tokens, hidden.dtype.itemsize if is_fused(hidden) else 4)
    return divergence_of_matrix(hidden, weight, bias, expected, transforms, kind, chunk)


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, top_k: int | None = None) -> Tensor:
    """``(n,)`` nats, not below 0, of ``(n, V)`` logprobs.

    ``reverse_kl`` is ``KL(student, teacher)``, which keeps to what the teacher would do; ``forward_kl`` is
    ``KL(teacher, student)``, which covers all of it; ``jsd`` the mean of both's divergence from their mean (GKD,
    arXiv:2306.13649, Eq. 1, with 1/2).

    Args:
        student: Carries gradient.
        teacher: Carries none.
        kind: Which.
        top_k: Tell only so many tokens apart, the teacher's likeliest, see ``to_likeliest``; None for all tokens.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> divergence(p, q, "reverse_kl"), divergence(p, q, "forward_kl")
        (tensor([0.1438]), tensor([0.1308]))
    """
    if top_k is not None and top_k < teacher.shape[-1]:
        logprobs, token_ids = teacher.topk(top_k, dim=-1)
        return to_likeliest(student, Likeliest(token_ids, logprobs), kind)
    return _of_distributions(student, teacher, kind)


def to_likeliest(student: Tensor, teacher: Likeliest, kind: Divergence) -> Tensor:
    """``(n,)`` nats, not below 0: the divergence where only the teacher's K likeliest tokens are told apart.

    All others are one more token, the rest. With student p and teacher q, ``reverse_kl`` is
    ``sum_K p log(p / q) + p_rest log(p_rest / q_rest)``, where ``p_rest = 1 - sum_K p`` and ``q_rest = 1 - sum_K q``; the others
    likewise. Merging tokens only lowers a divergence, so this is a lower bound, and 0 where the student has the teacher's
    probabilities. It is TRL's ``loss_add_tail`` (server_distillation), there for forward_kl alone where K is above 1.

    Args:
        student: ``(n, V)`` logprobs; carries gradient.
        teacher: Of the same n tokens.
        kind: See ``divergence``.
    """
    token_ids, logprobs = teacher.token_ids.to(student.device), teacher.logprobs.to(student.device, student.dtype)
    return _of_distributions(_with_rest(student.gather(-1, token_ids)), _with_rest(logprobs), kind)


def _of_distributions(student: Tensor, teacher: Tensor, kind: Divergence) -> Tensor:
    if kind == "reverse_kl":
        return _kl(student, teacher)
    if kind == "forward_kl":
        return _kl(teacher, student)
    mean = torch.logaddexp(student, teacher) - math.log(2.0)
    return 0.5 * (_kl(student, mean) + _kl(teacher, mean))


def _kl(left: Tensor, right: Tensor) -> Tensor:
    return (left.exp() * (left - right)).sum(-1)  # not vecdot, whose products autocast would round to bfloat16


def _with_rest(logprobs: Tensor) -> Tensor:
    """With the logprob of everything else behind them."""
    rest = (1.0 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=torch.finfo(logprobs.dtype).eps)
    return torch.cat([logprobs, rest.log()], dim=-1)
