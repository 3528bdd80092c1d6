"""The load-balancing loss by hand, and that it is the same however a step is split."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from grpo_lightning.algorithm.load_balance import expert_loads, load_balance_loss, load_metrics, sum_of_loads

LOGITS = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.4, 0.6]]).log()


def test_the_loss_is_experts_times_chosen_shares_times_mean_probabilities():
    loads = expert_loads([LOGITS], torch.ones(3, dtype=torch.int64), top_k=1)
    # f = (2/3, 1/3), P = (1.9/3, 1.1/3): 2 * (2 * 1.9 + 1.1) / 9.
    assert float(load_balance_loss(loads, loads)) == pytest.approx(9.8 / 9)
    assert loads.counts.tolist() == [[2, 1]]


def test_a_prompt_counts_once_for_each_completion_and_padding_not_at_all():
    loads = expert_loads([LOGITS], torch.tensor([3, 0, 1]), top_k=1)
    assert loads.counts.tolist() == [[3, 1]]
    torch.testing.assert_close(loads.probabilities, torch.tensor([3 * 0.75 + 0.4, 3 * 0.25 + 0.6]))
    assert int(loads.decisions) == 4


def test_an_even_load_costs_the_number_of_experts_per_token():
    even = torch.zeros(4, 4) + 1e-3 * torch.eye(4)  # ties are broken evenly
    loads = expert_loads([even, even], torch.ones(4, dtype=torch.int64), top_k=1)
    assert float(load_balance_loss(loads, loads)) == pytest.approx(1.0)
    metrics = load_metrics(loads)
    assert float(metrics["router/load_entropy"]) == pytest.approx(1.0)
    assert float(metrics["router/load_max_share"]) == pytest.approx(0.25)


def test_metrics_name_the_worst_layer_and_the_mean_entropy():
    dead = torch.tensor([[5.0, 0.0]]).repeat(4, 1)
    even = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 1)
    metrics = load_metrics(expert_loads([dead, even], torch.ones(4, dtype=torch.int64), top_k=1))
    assert float(metrics["router/load_max_share"]) == 1.0
    assert float(metrics["router/load_entropy"]) == pytest.approx(0.5)  # 0 in one layer, 1 in the other


def test_shares_of_any_split_add_up_to_the_loss_and_gradient_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64).requires_grad_()
    times = torch.tensor([2, 1, 1, 0, 3, 1, 1, 2, 1])

    def loads(part: slice):
        return expert_loads(list(logits[:, part]), times[part], top_k=2)

    whole = loads(slice(None))
    loss = load_balance_loss(whole, whole)
    (expected,) = torch.autograd.grad(loss, logits)
    assert expected.norm() > 1e-3 and not expected[:, 3].any()
    for cuts in ((0, 4, 9), (0, 1, 5, 6, 9)):
        parts = [loads(slice(a, b)) for a, b in pairwise(cuts)]
        of_step = sum_of_loads([None, *parts]).to("cpu")
        found = sum(load_balance_loss(part, of_step) for part in parts)
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(torch.autograd.grad(found, logits)[0], expected)


def test_a_step_without_tokens_costs_nothing():
    loads = expert_loads([LOGITS[:0]], torch.ones(0, dtype=torch.int64), top_k=1)
    assert float(load_balance_loss(loads, loads)) == 0.0
    assert sum_of_loads([None]) is None
