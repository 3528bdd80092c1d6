"""From logits to tokens: inverse-CDF draws, their logprobs, and the random numbers behind them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.transformers.sampling import TokenSampler, draw_tokens, prompt_uniforms


def test_a_uniform_picks_the_token_whose_slice_of_the_unit_interval_it_lies_in():
    scores = torch.tensor([0.5, 0.25, 0.25]).log().expand(5, 3)
    tokens, logprobs = draw_tokens(scores, torch.tensor([0.0, 0.4999, 0.5001, 0.7499, 0.7501], dtype=torch.float64))
    assert tokens.tolist() == [0, 0, 1, 1, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25]))


@pytest.mark.parametrize("vocabulary", [1, 20, 128, 129, 320, 1000])
def test_blocks_of_the_vocabulary_give_the_draws_of_one_cumulative_sum(vocabulary):
    random = torch.Generator().manual_seed(vocabulary)
    scores = 3 * torch.randn(500, vocabulary, generator=random)
    uniforms = torch.rand(500, generator=random, dtype=torch.float64)
    expected_logprobs = scores.double().log_softmax(-1)
    cumulative = expected_logprobs.exp().cumsum(-1)
    expected = torch.searchsorted(cumulative, uniforms[:, None], right=True).clamp(max=vocabulary - 1)
    tokens, logprobs = draw_tokens(scores, uniforms)
    assert tokens.tolist() == expected.squeeze(-1).tolist()
    torch.testing.assert_close(logprobs.double(), expected_logprobs.gather(-1, expected).squeeze(-1), rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([5, 128, 300]), st.sampled_from([0.0, 1e-300, 0.5, 1 - 2**-53]))
def test_a_token_of_probability_zero_is_never_drawn(seed, vocabulary, uniform):
    random = torch.Generator().manual_seed(seed)
    scores = 20 * torch.randn(64, vocabulary, generator=random)
    kept = torch.rand(64, vocabulary, generator=random) < 0.1
    kept[torch.arange(64), torch.randint(vocabulary, (64,), generator=random)] = True
    scores[~kept] = -torch.inf
    tokens, logprobs = draw_tokens(scores, torch.full((64,), uniform, dtype=torch.float64))
    assert kept[torch.arange(64), tokens].all()
    assert logprobs.isfinite().all()


def test_scores_that_are_not_numbers_give_a_valid_token_with_the_logprob_nan():
    scores = torch.zeros(3, 200)
    scores[0, 7], scores[1], scores[2, 5] = torch.nan, -torch.inf, torch.inf
    tokens, logprobs = draw_tokens(scores, torch.full((3,), 0.999, dtype=torch.float64))
    assert ((tokens >= 0) & (tokens < 200)).all()
    assert logprobs.isnan().all()


def test_bfloat16_logits_are_divided_by_the_temperature_in_float32():
    logits = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.bfloat16)
    _, logprobs = TokenSampler(SamplingSettings(temperature=3.0))(logits, torch.zeros(1, dtype=torch.float64))
    total = math.exp(1 / 3) + math.exp(2 / 3) + math.exp(4 / 3)
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(1 / 3 - math.log(total), abs=1e-6)


def test_greedy_decoding_takes_the_best_token_and_its_logprob_at_temperature_1():
    sampler = TokenSampler(SamplingSettings(temperature=0, top_k=2, top_p=0.1))
    tokens, logprobs = sampler(torch.tensor([[0.0, 2.0, 1.0]]), torch.zeros(1, dtype=torch.float64))
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(2 - math.log(1 + math.exp(2) + math.e), abs=1e-6)


def test_the_repetition_penalty_applies_once_to_tokens_of_the_history_before_the_temperature():
    sampler = TokenSampler(SamplingSettings(temperature=0.5, repetition_penalty=2.0))
    scores = sampler.scores(torch.tensor([[3.0, -1.0, 1.0]]), torch.tensor([[0, 1, 0]]))
    torch.testing.assert_close(scores, torch.tensor([[3.0, -4.0, 2.0]]))


def test_uniforms_depend_on_every_bit_of_the_seed():
    draws = {tuple(prompt_uniforms(seed, 1, 3).flatten().tolist()) for seed in (5, 6, 5 + 2**32, 5 + 2**40, 5 + 2**62)}
    assert len(draws) == 5
    assert prompt_uniforms(5, 2, 3).shape == (2, 3)
    assert torch.equal(prompt_uniforms(5, 2, 3), prompt_uniforms(5, 2, 3))
