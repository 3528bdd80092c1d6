"""Distillation by sampled tokens, and weights for older ones, against TRL's SDPO in float64."""

from __future__ import annotations

import pytest
import torch
from trl.experimental.sdpo.loss_utils import (
    apply_importance_sampling_clipping,
    compute_sampled_token_self_distillation_loss,
)

from grpo_lightning.algorithm.sampled_divergence import clipped_importance, sampled_token_loss


@pytest.mark.parametrize("clip", [None, 0.5, 2.0, 100.0])
def test_loss_and_gradient_are_those_of_trls_sdpo(clip):
    generator = torch.Generator().manual_seed(0)
    student, teacher, older = (2.0 * torch.randn(1, 9, 13, dtype=torch.float64, generator=generator) for _ in range(3))
    student.requires_grad_()
    ids = torch.randint(0, 13, (1, 9), generator=generator)
    logprobs, told, old = (
        each.log_softmax(-1).gather(-1, ids[..., None])[0, :, 0] for each in (student, teacher, older)
    )
    found = sampled_token_loss(logprobs, told)
    expected = compute_sampled_token_self_distillation_loss(student, teacher, ids, distillation_alpha=1.0)[0]
    if clip is not None:
        found = found * clipped_importance(logprobs, old, clip)
        expected = apply_importance_sampling_clipping(expected, logprobs, old, clip)
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad(each.sum(), student, retain_graph=True)[0] for each in (found, expected))
    torch.testing.assert_close(mine, theirs)
    assert float(theirs.abs().max()) > 1e-3


def test_a_weight_stays_finite_however_unlikely_a_token_was():
    weight = clipped_importance(torch.tensor([0.0]), torch.tensor([-2000.0]), float("inf"))
    torch.testing.assert_close(weight, torch.tensor([20.0]).exp())
