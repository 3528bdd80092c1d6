"""Divergence of two heads, a slice at a time, against full logits and TRL's GKD."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from largest_tensor import LargestTensor
from torch import nn

from grpo_lightning.numerics.divergence import Likeliest, Side, divergence, divergence_per_token, to_likeliest
from grpo_lightning.numerics.output_head import OutputHead

KINDS = ("reverse_kl", "forward_kl", "jsd")
OF_TRL = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
"""TRL's beta of the same divergence."""


def make_sides(tokens: int = 10, vocab: tuple[int, int] = (23, 23), as_module: bool = False) -> tuple[Side, Side]:
    """In float64, with heads of different widths; ``as_module`` hides that the student's is one matrix."""
    torch.manual_seed(0)
    sides = []
    for width, size in zip((6, 9), vocab, strict=True):
        hidden = torch.randn(tokens, width, dtype=torch.float64, requires_grad=True)
        sides.append(Side(hidden, OutputHead(nn.Linear(width, size, dtype=torch.float64), size)))
    student, teacher = sides
    if as_module:
        student = replace(student, head=replace(student.head, module=nn.Sequential(student.head.module)))
    return student, teacher


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("as_module", [False, True])
def test_value_and_gradients_are_those_of_trls_gkd_on_full_logits(kind, temperature, chunk, as_module):
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher = make_sides(as_module=as_module)
    found = divergence_per_token(student, teacher, kind, None, temperature, chunk)
    logits = [side.head.module(side.hidden) for side in (student, teacher)]
    expected = trainer.generalized_jsd_loss(
        logits[0], logits[1].detach(), beta=OF_TRL[kind], temperature=temperature, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(found, expected)
    trained = [student.hidden, *student.head.module.parameters()]
    weights = torch.linspace(0.5, 2.0, len(found), dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((weights * each).sum(), trained) for each in (found, expected))
    torch.testing.assert_close(mine, theirs)
    assert float(theirs[0].abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_module", [False, True])
def test_each_side_has_the_scale_and_the_cap_of_its_own_logits(kind, as_module):
    student, teacher = make_sides(as_module=as_module)
    student = replace(student, head=replace(student.head, logit_scale=1.5, softcap=2.0))
    teacher = replace(teacher, head=replace(teacher.head, logit_scale=0.5, softcap=3.0))
    found = divergence_per_token(student, teacher, kind, None, 0.8, 4)
    p, q = (
        torch.tanh(side.head.module(side.hidden) * side.head.logit_scale / side.head.softcap) * side.head.softcap / 0.8
        for side in (student, teacher)
    )
    expected = divergence(p.log_softmax(-1), q.detach().log_softmax(-1), kind)
    torch.testing.assert_close(found, expected)
    trained = [student.hidden, *student.head.module.parameters()]
    mine, theirs = (torch.autograd.grad(each.square().sum(), trained) for each in (found, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("vocab", [(23, 31), (31, 23)])
def test_tokens_that_one_side_lacks_have_no_gradient(vocab):
    found = []
    for as_module in (False, True):
        student, teacher = make_sides(vocab=vocab, as_module=as_module)
        values = divergence_per_token(student, teacher, "jsd", chunk_tokens=4)
        gradients = torch.autograd.grad(values.square().sum(), [student.hidden, *student.head.module.parameters()])
        assert not gradients[1][23:].any() and gradients[1][:23].all()
        found.append([values.detach(), *gradients])
    torch.testing.assert_close(*found)


def test_the_teacher_has_no_gradient():
    student, teacher = make_sides()
    divergence_per_token(student, teacher, "reverse_kl", chunk_tokens=4).sum().backward()
    assert teacher.hidden.grad is None and all(p.grad is None for p in teacher.head.module.parameters())
    assert student.hidden.grad is not None


def test_heads_that_are_padded_to_different_sizes_are_compared_on_what_both_have():
    student, teacher = make_sides(vocab=(23, 31))
    found = divergence_per_token(student, teacher, "forward_kl")
    p, q = student.head.module(student.hidden), teacher.head.module(teacher.hidden)[:, :23]
    expected = (q.log_softmax(-1).exp() * (q.log_softmax(-1) - p.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_tells_the_teachers_likeliest_tokens_apart_and_takes_the_others_together(kind):
    student = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.5, 0.1, 0.3, 0.1]], dtype=torch.float64).log()
    merged = [torch.tensor([row], dtype=torch.float64).log() for row in ([0.1, 0.3, 0.6], [0.5, 0.3, 0.2])]
    torch.testing.assert_close(divergence(student, teacher, kind, 2), divergence(*merged, kind))
    whole = divergence(student, teacher, kind)
    assert 0 < divergence(student, teacher, kind, 2).item() < whole.item()
    torch.testing.assert_close(divergence(student, teacher, kind, 4), whole)
    torch.testing.assert_close(divergence(teacher, teacher, kind, 2), torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_shows_its_likeliest_tokens_teaches_as_one_with_top_k(kind):
    student, teacher = make_sides()
    logprobs, token_ids = teacher.head.module(teacher.hidden).detach().log_softmax(-1).topk(4)
    trained = [student.hidden, *student.head.module.parameters()]
    found = divergence_per_token(student, Likeliest(token_ids, logprobs), kind, chunk_tokens=3)
    expected = divergence_per_token(student, teacher, kind, 4, chunk_tokens=3)
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad((each * each).sum(), trained) for each in (found, expected))
    torch.testing.assert_close(mine, theirs)
    assert float(theirs[0].abs().max()) > 1e-3


@pytest.mark.parametrize("top_k", [1, 5])
def test_the_rest_of_a_server_is_trls_tail(top_k):
    trl = pytest.importorskip("trl.experimental.server_distillation.server_distillation_trainer")
    generator = torch.Generator().manual_seed(3)
    student, teacher = (
        torch.randn(20, 30, dtype=torch.float64, generator=generator).mul(2).log_softmax(-1) for _ in range(2)
    )
    logprobs, token_ids = teacher.topk(top_k)
    both = [
        trl._add_tail_bucket(each, torch.ones_like(each, dtype=torch.bool))
        for each in (student.gather(-1, token_ids), logprobs)
    ]
    expected = trl._jsd_divergence(both[0][0], both[1][0], beta=0.0, support_mask=both[0][1]).sum(-1)
    torch.testing.assert_close(to_likeliest(student, Likeliest(token_ids, logprobs), "forward_kl"), expected)


def test_no_tensor_of_tokens_times_vocabulary_exists():
    student, teacher = make_sides(tokens=400, vocab=(500, 500))
    with LargestTensor() as largest:
        divergence_per_token(student, teacher, "jsd", chunk_tokens=16).sum().backward()
    assert largest.numel < 400 * 500 / 4
