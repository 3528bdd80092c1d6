"""The chunked output head against plain ``log_softmax`` of the full logits."""

from __future__ import annotations

import math

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor, nn

from grpo_lightning.numerics import logprobs
from grpo_lightning.numerics.logprobs import chunk_length, kept_length, selected_logprobs, selected_logprobs_of_module

TOKENS, VOCAB, HIDDEN = 23, 37, 8
TRANSFORMS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.3, "logit_scale": 0.25},
    {"softcap": 2.0},
    {"temperature": 0.6, "logit_scale": 1.5, "softcap": 3.0},
]


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    hidden, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias))
    return hidden, weight, bias, targets


def plain(hidden, weight, bias, targets, temperature=1.0, logit_scale=1.0, softcap=None):
    """The definition: all logits, then log_softmax."""
    logits = hidden @ weight.T * logit_scale if bias is None else (hidden @ weight.T + bias) * logit_scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    return distribution.log_prob(targets), distribution.entropy()


def gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, tensors))


def test_a_uniform_head_gives_minus_log_of_the_vocabulary_and_the_largest_entropy():
    logprobs, entropy = selected_logprobs(
        torch.ones(3, 4), torch.zeros(10, 4), torch.tensor([0, 5, 9]), with_entropy=True
    )
    torch.testing.assert_close(logprobs, torch.full((3,), -math.log(10)))
    torch.testing.assert_close(entropy, torch.full((3,), math.log(10)))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("chunk_tokens", [1, 5, 23, 64])
def test_values_and_gradients_equal_log_softmax_in_float64(transform, chunk_tokens):
    hidden, weight, bias, targets = problem()
    upstream, upstream_entropy = torch.randn(2, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logprobs, entropy = selected_logprobs(
        hidden, weight, targets, bias=bias, chunk_tokens=chunk_tokens, with_entropy=True, entropy_grad=True, **transform
    )
    expected, expected_entropy = plain(hidden, weight, bias, targets, **transform)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    found = gradients((logprobs * upstream).sum() + (entropy * upstream_entropy).sum(), hidden, weight, bias)
    wanted = gradients((expected * upstream).sum() + (expected_entropy * upstream_entropy).sum(), hidden, weight, bias)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_module_path_equals_the_matrix_path_with_gradients(transform):
    hidden, weight, bias, targets = problem()
    options = {"chunk_tokens": 4, "with_entropy": True, "entropy_grad": True, **transform}
    matrix = selected_logprobs(hidden, weight, targets, bias=bias, **options)
    module = selected_logprobs_of_module(
        hidden, lambda h: nn.functional.linear(h, weight, bias), targets, vocab_size=VOCAB, **options
    )
    torch.testing.assert_close(module, matrix)
    losses = [(logprobs.square() + entropy).sum() for logprobs, entropy in (module, matrix)]
    torch.testing.assert_close(*(gradients(loss, hidden, weight, bias) for loss in losses))


def test_float32_stays_within_float32_rounding():
    hidden, weight, _, targets = problem(torch.float32)
    logprobs, _ = selected_logprobs(hidden, weight, targets, chunk_tokens=4, temperature=0.8)
    expected, _ = plain(hidden, weight, None, targets, temperature=0.8)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(
        gradients(logprobs.square().sum(), hidden, weight),
        gradients(expected.square().sum(), hidden, weight),
        rtol=1e-5,  # sums over tokens and vocabulary in another order
        atol=1e-4,
    )


def test_bfloat16_gradients_are_as_close_to_float64_as_the_plain_version():
    hidden, weight, _, targets = problem(torch.bfloat16)
    exact_hidden, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    exact = gradients(plain(exact_hidden, exact_weight, None, targets)[0].square().sum(), exact_hidden, exact_weight)
    ours, _ = selected_logprobs(hidden, weight, targets, chunk_tokens=4)
    assert ours.dtype == torch.float32
    naive = (hidden @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    for found, baseline, wanted in zip(
        gradients(ours.square().sum(), hidden, weight),
        gradients(naive.square().sum(), hidden, weight),
        exact,
        strict=True,
    ):
        assert found.dtype == torch.bfloat16
        assert (found.double() - wanted).norm() <= 1.2 * (baseline.double() - wanted).norm()


def test_a_float32_head_on_bfloat16_inputs_equals_float64_to_float32_rounding():
    hidden, weight, _, targets = problem(torch.bfloat16)
    logprobs, _ = selected_logprobs(hidden, weight, targets, float32_head=True)
    expected, _ = plain(hidden.double(), weight.double(), None, targets)
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    assert gradients(logprobs.sum(), weight)[0].dtype == torch.bfloat16


def test_autocast_computes_products_in_bfloat16_and_returns_float32_gradients():
    hidden, weight, _, targets = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = selected_logprobs(hidden, weight, targets)
    rounded, _ = selected_logprobs(hidden.bfloat16(), weight.bfloat16(), targets)
    torch.testing.assert_close(logprobs, rounded)
    assert gradients(logprobs.sum(), weight)[0].dtype == torch.float32


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_float32_head_has_the_gradients_of_float64_under_autocast_whose_backward_passes_are_inside(with_bias):
    hidden, weight, bias, targets = problem(torch.float32)
    bias = bias if with_bias else None
    inputs = [hidden, weight] + ([bias] if with_bias else [])
    with torch.autocast("cpu", torch.bfloat16):
        options = {"float32_head": True, "chunk_tokens": 4, "with_entropy": True, "entropy_grad": True}
        logprobs, entropy = selected_logprobs(hidden, weight, targets, bias=bias, **options)
        found = gradients(logprobs.square().sum() + entropy.sum(), *inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected, of_all = plain(exact[0], exact[1], exact[2] if with_bias else None, targets)
    for one, wanted in zip(found, gradients(expected.square().sum() + of_all.sum(), *exact), strict=True):
        assert (one - wanted).norm() < 1e-6 * wanted.norm()


def test_entropy_without_its_gradient_leaves_the_logprob_gradient_alone():
    hidden, weight, _, targets = problem()
    logprobs, entropy = selected_logprobs(hidden, weight, targets, with_entropy=True)
    assert not entropy.requires_grad
    torch.testing.assert_close(
        gradients(logprobs.sum(), hidden), gradients(plain(hidden, weight, None, targets)[0].sum(), hidden)
    )


def test_a_frozen_head_gets_no_gradient_and_hidden_states_still_do():
    hidden, weight, _, targets = problem()
    logprobs, _ = selected_logprobs(hidden, weight.detach(), targets, chunk_tokens=3)
    expected, _ = plain(hidden, weight.detach(), None, targets)
    torch.testing.assert_close(gradients(logprobs.sum(), hidden), gradients(expected.sum(), hidden))


def test_tied_weights_collect_the_gradient_of_both_uses():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
    tokens, targets = torch.randint(0, VOCAB, (2, TOKENS), generator=generator)
    found = gradients(selected_logprobs(table[tokens], table, targets)[0].sum(), table)
    torch.testing.assert_close(found, gradients(plain(table[tokens], table, None, targets)[0].sum(), table))


@pytest.mark.parametrize("path", ["matrix", "module"])
def test_no_tensor_is_larger_than_one_chunk_of_logits(path):
    tokens, vocab, chunk = 512, 300, 16
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = torch.randn(vocab, HIDDEN, requires_grad=True)
    targets = torch.randint(0, vocab, (tokens,))
    options = {"chunk_tokens": chunk, "with_entropy": True, "entropy_grad": True, "softcap": 5.0, "temperature": 0.9}
    with LargestTensor() as largest:
        if path == "matrix":
            logprobs, entropy = selected_logprobs(hidden, weight, targets, **options)
        else:
            logprobs, entropy = selected_logprobs_of_module(
                hidden, lambda h: h @ weight.T, targets, vocab_size=vocab, **options
            )
        (logprobs + entropy).sum().backward()
    assert largest.numel == max(chunk * vocab, tokens * HIDDEN)


def test_no_token_at_all_gives_an_empty_result_with_a_zero_gradient():
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, requires_grad=True)
    logprobs, _ = selected_logprobs(hidden, weight, torch.zeros(0, dtype=torch.int64))
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    assert not weight.grad.any()


def test_the_default_chunk_fits_its_budget_and_never_shrinks_to_a_token():
    assert chunk_length(4096, torch.device("cpu")) == 128
    assert chunk_length(10_000_000, torch.device("cpu")) == 64
    assert chunk_length(152_064, torch.device("cuda")) * 152_064 * 4 <= 2**30


def test_settings_without_meaning_are_refused():
    hidden, weight, _, targets = problem()
    with pytest.raises(ValueError, match=r"model\.temperature=0\.0"):
        selected_logprobs(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        selected_logprobs(hidden, weight, targets, chunk_tokens=0)
    with pytest.raises(ValueError, match="23 hidden states cannot score 22 targets"):
        selected_logprobs(hidden, weight, targets[1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("vocab", [37, 10_007])
def test_the_fused_kernels_equal_log_softmax_in_float64(transform, entropy_grad, vocab):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((50, 8), (vocab, 8), (vocab,)))
    targets = torch.randint(0, vocab, (50,), generator=generator)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight, bias)]
    single = [tensor.cuda().requires_grad_() for tensor in (hidden, weight, bias)]
    options = {"chunk_tokens": 16, "with_entropy": True, "entropy_grad": entropy_grad, **transform}
    logprobs, entropy = selected_logprobs(single[0], single[1], targets.cuda(), bias=single[2], **options)
    expected, expected_entropy = plain(*exact, targets, **transform)
    torch.testing.assert_close(logprobs.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy.cpu().double(), expected_entropy, rtol=1e-4, atol=1e-4)
    loss, wanted = (
        lp.sin().sum() + entropy_grad * h.sum() for lp, h in ((logprobs, entropy), (expected, expected_entropy))
    )
    for found, reference in zip(gradients(loss, *single), gradients(wanted, *exact), strict=True):
        assert (found.cpu().double() - reference).norm() < 1e-4 * reference.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("kept", "products"), [(0, 4 + 4), (20, 4 + 3), (49, 4 + 1), (50, 4 + 0)])
def test_logits_that_were_kept_give_the_gradient_of_those_computed_anew(monkeypatch, kept, products):
    """50 tokens in chunks of 16: the last one has two."""
    monkeypatch.setattr(logprobs, "chunk_length", lambda *_: 16)
    calls, linear = [], nn.functional.linear
    monkeypatch.setattr(logprobs.nn.functional, "linear", lambda *args: calls.append(1) or linear(*args))
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(*shape, generator=generator).cuda().requires_grad_() for shape in ((50, 8), (1000, 8), (1000,))
    ]
    targets = torch.randint(0, 1000, (50,), generator=generator).cuda()

    def loss_keeping(tokens):
        monkeypatch.setattr(logprobs, "kept_length", lambda *_: tokens)
        calls.clear()
        found, entropy = selected_logprobs(
            parts[0], parts[1], targets, bias=parts[2], with_entropy=True, entropy_grad=True, keep_logits=True
        )
        return found.sin().sum() + entropy.sum()

    expected = torch.autograd.grad(loss_keeping(0), parts)
    loss = loss_keeping(kept)
    found = torch.autograd.grad(loss, parts, retain_graph=True)
    assert len(calls) == products
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(torch.autograd.grad(loss, parts), expected, strict=True):  # nothing is left of the kept ones
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with torch.no_grad():
        loss_keeping(50)
    assert len(calls) == 4


def test_a_cpu_keeps_no_logits():
    assert kept_length(1000, torch.device("cpu"), 4) == 0
