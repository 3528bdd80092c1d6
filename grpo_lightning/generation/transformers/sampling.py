"""Logits to tokens: the distribution that SamplingSettings ask for, and draws from it that depend on the seed alone."""

from __future__ import annotations

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpo_lightning.generation.base import SamplingSettings

BLOCK = 128
"""Vocabulary entries that are summed before the cumulative sum: it divides the usual vocabulary sizes."""


def prompt_uniforms(seed: int, num_generations: int, max_completion_length: int) -> Tensor:
    """``(G, C)`` float64 in [0, 1): the random numbers behind every token of one prompt's G completions.

    They come from a stream of their own, so that neither other prompts nor the global random states matter. NumPy's
    PCG64 hashes all of ``seed``; ``torch.Generator.manual_seed`` drops all but the low 32 bits on the CPU.
    """
    stream = numpy.random.Generator(numpy.random.PCG64(seed))
    return torch.from_numpy(stream.random((num_generations, max_completion_length)))


def draw_tokens(scores: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-CDF draws from softmax(scores): the first token whose cumulative probability exceeds the uniform.

    Sums over blocks of the vocabulary find the block, then sums inside it the token: one pass over the scores where
    a cumulative sum of everything in float64 takes several.

    Args:
        scores: ``(n, V)`` float32, unnormalised logprobs; -inf never comes out.
        uniforms: ``(n,)`` float64 in [0, 1).

    Returns:
        ``(n,)`` int64 tokens and their ``(n,)`` float32 logprobs in nats. Scores that are not finite numbers give a
        valid token id with the logprob NaN.
    """
    size, vocabulary = scores.shape
    block = min(BLOCK, vocabulary)
    peak = scores.amax(-1, keepdim=True)
    weights = F.pad((scores - peak).exp_(), (0, -vocabulary % block)).view(size, -1, block)
    block_weights = weights.sum(-1).double()  # (n, V / block)
    edges = block_weights.cumsum(-1)
    total = edges[:, -1:]
    chosen_block, start = _first_above(edges, uniforms.unsqueeze(-1) * total)
    inside = weights[torch.arange(size, device=scores.device), chosen_block.squeeze(-1)].double()  # (n, block)
    offset, _ = _first_above(inside.cumsum(-1), start)
    tokens = (chosen_block * block + offset).clamp_(max=vocabulary - 1)
    logprobs = scores.gather(-1, tokens) - peak - total.log().float()
    return tokens.squeeze(-1), logprobs.squeeze(-1)


def _first_above(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """First entry of each row of ``cumulative`` (n, k) above ``target`` (n, 1), and how far the target lies inside it.

    A target at the very end, where rounding may carry it, is brought back to just under the last sum. It then lies in
    an entry that adds something, so a token of probability 0 is never found.
    """
    last = cumulative[:, -1:]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[-1] - 1)
    before = F.pad(cumulative, (1, 0)).gather(-1, index)
    return index, target - before


class TokenSampler:
    """Draws one token per row as ``SamplingSettings`` ask, in the order of transformers' ``generate``.

    Repetition penalty, temperature, top-k, top-p, min-p. The logprobs are those of the distribution that is drawn from:
    exactly log softmax(logits / temperature) unless a setting reshapes it, and renormalised over what is left if one
    does (vLLM calls these processed logprobs). Greedy decoding takes the most likely token and reports its logprob at
    temperature 1.

    Args:
        sampling: How to draw.
    """

    def __init__(self, sampling: SamplingSettings) -> None:
        self.greedy = sampling.temperature == 0
        self.temperature = 1.0 if self.greedy else float(sampling.temperature)
        self.penalty: LogitsProcessor | None = None
        if sampling.repetition_penalty != 1:
            self.penalty = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
        self.warpers: list[LogitsProcessor] = []
        if self.greedy:
            return  # truncation keeps the most likely token, so it cannot change which one that is
        if sampling.top_k > 0:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            self.warpers.append(MinPLogitsWarper(sampling.min_p))

    @property
    def needs_history(self) -> bool:
        """True where the tokens so far change the distribution."""
        return self.penalty is not None

    def __call__(self, logits: Tensor, uniforms: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One token per row.

        Args:
            logits: ``(n, V)``, any floating type.
            uniforms: ``(n,)`` float64 in [0, 1); not read by greedy decoding.
            history: ``(n, L)`` int64, prompt and completion so far, repeated ids allowed; for ``needs_history``.

        Returns:
            ``(n,)`` int64 tokens and their ``(n,)`` float32 logprobs in nats.
        """
        scores = self.scores(logits, history)
        if not self.greedy:
            return draw_tokens(scores, uniforms)
        best, tokens = scores.max(-1)
        return tokens, best - scores.logsumexp(-1)

    def scores(self, logits: Tensor, history: Tensor | None = None) -> Tensor:
        """``(n, V)`` float32 whose softmax is the distribution that tokens are drawn from."""
        scores = logits.float()
        if self.penalty is not None:
            scores = self.penalty(history, scores)
        if self.temperature != 1:
            scores = scores / self.temperature
        for warper in self.warpers:
            scores = warper(history, scores)
        return scores
