"""Log-probabilities and entropies of chosen tokens from hidden states, without ever holding all logits.

The logits of T tokens over a vocabulary of V are the largest tensor of a GRPO step: 138,000 tokens of a 152,000-word
vocabulary are 84 GB in float32. Here they exist one chunk of tokens at a time, in the forward pass and again in the
backward pass, computed anew but for what a large device keeps. The policy, the old policy and the reference all go
through these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpo_lightning.numerics import kernel_language, logprob_formulas, logprob_kernels
from grpo_lightning.numerics.dtypes import at_least_float32, autocast_dtype
from grpo_lightning.numerics.head_gradients import HeadGradients
from grpo_lightning.numerics.logit_transform import LogitTransform

CHUNK_BYTES = {"cpu": 2 * 2**20, "cuda": 1024 * 2**20}
"""Size of one chunk of logits by device type. A CPU is fastest when it fits the cache; on a GPU each chunk reads the
whole output matrix and writes its gradient, so a chunk needs thousands of tokens to be worth that traffic."""
KEPT_SHARE = 1 / 8
"""Of a GPU's memory, for logits that the backward pass finds instead of computing them anew: one in four products of the
head. A CPU keeps none, whose cache a chunk has to fit."""
MIN_CHUNK_TOKENS = 64
"""With a large vocabulary the traffic of the output matrix counts on a CPU too."""


def chunk_length(
    vocab_size: int, device: torch.device, chunk_tokens: int | None = None, bytes_per_logit: int = 4
) -> int:
    """Tokens of one chunk: ``chunk_tokens`` where given, else what fits into ``CHUNK_BYTES`` of logits.

    Raises:
        ValueError: If ``chunk_tokens`` is below 1.
    """
    if chunk_tokens is not None:
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens={chunk_tokens} holds no token. Choose at least 1, or None for the default.")
        return chunk_tokens
    return max(MIN_CHUNK_TOKENS, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (bytes_per_logit * vocab_size))


def kept_length(vocab_size: int, device: torch.device, bytes_per_logit: int) -> int:
    """Tokens whose logits are kept for a backward pass, if there is one: what fits into ``KEPT_SHARE`` of the memory.

    Example:
        >>> kept_length(151_936, torch.device("cpu"), 2)
        0
    """
    if device.type != "cuda" or not torch.is_grad_enabled():
        return 0
    return int(KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory) // (bytes_per_logit * vocab_size)


def selected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    with_entropy: bool = False,
    entropy_grad: bool = False,
    float32_head: bool = False,
    keep_logits: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and the entropy of the distribution it was drawn from.

    Gradients reach hidden, weight and bias, exactly as through ``log_softmax`` of the full logits. Under autocast matrix
    products run in its dtype; softmax and entropy are float32 always (float64 for float64 input).

    Args:
        hidden: ``(T, H)`` hidden states, each predicting the target of the same index.
        weight, bias: ``(V, H)`` and ``(V,)``, of the output head; tied or not makes no difference.
        targets: ``(T,)`` int64 in [0, V).
        temperature: The temperature that the targets were sampled at.
        logit_scale, softcap: Multiplies the raw logits, and bounds them by ``softcap * tanh(logits / softcap)``.
        chunk_tokens: Tokens whose logits exist at the same time. Default: see ``CHUNK_BYTES``.
        with_entropy: Also return entropies.
        entropy_grad: Let gradient flow through the entropies; without it they are constants.
        float32_head: Compute the raw logits in float32 from a lower-precision head (one float32 copy of ``weight``).
        keep_logits: Keep up to ``KEPT_SHARE`` of a GPU's memory of them until the backward pass.

    Returns:
        Logprobs and entropies, ``(T,)`` float32 nats each; None for entropies that are not wanted.

    Raises:
        ValueError: If hidden states and targets differ in number, or a setting cannot work.
    """
    if hidden.shape[0] != targets.shape[0]:
        raise ValueError(f"{hidden.shape[0]} hidden states cannot score {targets.shape[0]} targets: one per target")
    transform = LogitTransform(temperature, logit_scale, softcap)
    dtype = product_dtype(hidden, weight, float32_head)
    hidden = hidden.to(dtype)
    bytes_per_logit = dtype.itemsize if is_fused(hidden) else 4  # written out, softmax is float32
    chunk = chunk_length(weight.shape[0], hidden.device, chunk_tokens, bytes_per_logit)
    kept = kept_length(weight.shape[0], hidden.device, bytes_per_logit) if keep_logits else 0
    arguments = (hidden, weight, bias, targets, transform, chunk, kept, with_entropy, with_entropy and entropy_grad)
    with torch.autocast(hidden.device.type, enabled=False):
        logprobs, entropy = _SelectedLogprobs.apply(*arguments)
    return logprobs, entropy if with_entropy else None


def selected_logprobs_of_module(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    with_entropy: bool = False,
    entropy_grad: bool = False,
    float32_head: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The same as ``selected_logprobs`` for a head that is more than one matrix: LoRA on the head, a quantised head.

    The head is called as a module on one chunk at a time inside a gradient checkpoint, so memory is as small; the
    price is autograd's float32 temporaries of one chunk.

    Args:
        hidden: ``(T, H)``.
        head: Maps ``(n, H)`` to raw logits ``(n, vocab_size)``.
        targets: ``(T,)`` int64.
        vocab_size: V, for the size of a chunk.
        temperature, logit_scale, softcap, chunk_tokens, with_entropy, entropy_grad: As in ``selected_logprobs``.
        float32_head: Call the head outside autocast on float32 hidden states; its weights must be float32.

    Returns:
        Logprobs ``(T,)`` float32 nats, and entropies ``(T,)`` float32 nats or None.
    """
    transform = LogitTransform(temperature, logit_scale, softcap)

    def score(hidden_chunk: Tensor, target_chunk: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(
            hidden.device.type, enabled=torch.is_autocast_enabled(hidden.device.type) and not float32_head
        ):
            raw = head(hidden_chunk.float() if float32_head else hidden_chunk)
        logits = transform.apply(at_least_float32(raw))
        logprobs = logits.log_softmax(-1)
        entropy = torch.zeros_like(logprobs[:, 0])
        if with_entropy:
            with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
                entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, target_chunk[:, None])[:, 0], entropy

    chunk = chunk_length(vocab_size, hidden.device, chunk_tokens)
    chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    scored = [checkpoint(score, h, y, use_reentrant=False) for h, y in chunks]
    logprobs = torch.cat([logprobs for logprobs, _ in scored])
    return logprobs, torch.cat([entropy for _, entropy in scored]) if with_entropy else None


def product_dtype(hidden: Tensor, weight: Tensor, float32_head: bool) -> torch.dtype:
    """The dtype that ``hidden`` meets ``weight`` in."""
    if hidden.dtype == torch.float64:
        return torch.float64
    if float32_head:
        return torch.float32
    return autocast_dtype(hidden) or torch.promote_types(hidden.dtype, weight.dtype)


class _SelectedLogprobs(torch.autograd.Function):
    """Chunked forward that keeps three numbers per token and the logits of some, and a backward that computes the others again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        chunk: int,
        kept: int,
        with_entropy: bool,
        entropy_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        ctx.held_in = weight.dtype  # a float32 matrix under autocast: its gradient is not rounded on the way
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        logprobs, normalizers, entropy = hidden.new_zeros(3, len(hidden), dtype=dtype).unbind()
        ctx.logits = {}
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            raw = nn.functional.linear(hidden[part], weight, bias)
            if is_fused(raw):  # which leaves them as they are
                statistics = logprob_kernels.softmax_statistics(raw, targets[part], transform)
                if start + len(raw) <= kept:
                    ctx.logits[start] = raw
            else:
                statistics = logprob_formulas.softmax_statistics(raw, targets[part], transform, with_entropy)
            logprobs[part], normalizers[part], entropy[part] = statistics
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers, entropy if entropy_grad else None)
        ctx.transform, ctx.chunk = transform, chunk
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers, entropy = ctx.saved_tensors
        gradients = HeadGradients(hidden, weight, bias, ctx.needs_input_grad[:3], normalizers.dtype)
        with torch.autocast(hidden.device.type, enabled=False):  # Lightning's backward passes are inside
            for start in range(0, len(hidden), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                raw = ctx.logits.pop(start, None)  # overwritten: another backward pass computes them anew
                if raw is None:
                    raw = nn.functional.linear(hidden[part], weight, bias)
                gradient = logprob_kernels.logit_gradient_ if is_fused(raw) else logprob_formulas.logit_gradient_
                of_entropy = None if entropy is None else (entropy[part], grad_entropy[part])
                grad = gradient(raw, targets[part], normalizers[part], grad_logprobs[part], of_entropy, ctx.transform)
                gradients.add(part, grad)
        return *gradients.result(ctx.held_in), *(None,) * 6


def fused_head_obstacle(device: torch.device) -> str | None:
    """Why the kernels of ``logprob_kernels`` are not used on a device; None if they are."""
    if device.type != "cuda":
        return f"they run on a GPU, and training runs on {device.type}"
    return None if kernel_language.AVAILABLE else "the package triton is not installed"


def is_fused(raw: Tensor) -> bool:
    """Whether the kernels of ``logprob_kernels`` take these logits."""
    return kernel_language.AVAILABLE and raw.is_cuda and raw.dtype != torch.float64
