"""Groups whose completions all earn the same: where they can have no gradient they cost no pass, and still count."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from runs import fit, share_of_digits, write_prompts
from torch import Tensor

from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.training.updates import Updates

DEAD = "1"
"""The result in the prompt whose completions all earn the same."""


def alike_in_one_group(completions, ground_truth, **columns):
    dense = share_of_digits(completions)
    return [0.5 if truth == DEAD else reward for truth, reward in zip(ground_truth, dense, strict=True)]


class Step(NamedTuple):
    is_dead: Tensor
    """(N,) bool: advantage 0."""
    groups: list[int]
    """Of the dead completions."""
    trained: list[int]
    """Completions that reached a pass with gradient, in order."""
    totals: list
    """Of each micro-batch."""
    gradient: Tensor
    """At the optimizer step, flat."""
    metrics: dict[str, float]


@pytest.fixture
def step(tiny_model_dir, tmp_path, monkeypatch):
    """One step over three groups of four, one of them dead."""

    def run(train_all: bool = False, **settings) -> Step:
        trained, totals, gradients = [], [], []
        with monkeypatch.context() as patch:
            score = Scorer.score

            def count(self, rollouts, rows, *args, **kwargs):
                if torch.is_grad_enabled():
                    trained.extend(rows.tolist())
                return score(self, rollouts, rows, *args, **kwargs)

            patch.setattr(Scorer, "score", count)
            if train_all:
                patch.setattr(Updates, "has_gradient", lambda self, e: torch.ones(len(e.advantages)).bool())

            def watch(module):
                loss, step_optimizer = module.policy_loss, module.optimization.step

                def policy_loss(experience, micro_batch, report):
                    totals.append(micro_batch.totals)
                    return loss(experience, micro_batch, report)

                def step_on_gradient():
                    gradients.append(torch.cat([p.grad.flatten().clone() for p in module.policy.model.parameters()]))
                    return step_optimizer()

                module.policy_loss, module.optimization.step = policy_loss, step_on_gradient

            module = fit(
                tiny_model_dir,
                tmp_path,
                data={"dataset": str(write_prompts(tmp_path / "three.jsonl", 3))},
                on_module=watch,
                rewards=[alike_in_one_group],
                stop=list("aeiou13579"),  # completions of unequal length, so that averages differ
                **settings,
            )
        (gradient,) = gradients
        is_dead = module.last_step.advantages == 0
        groups = module.last_step.rollouts.group[is_dead].tolist()
        return Step(is_dead, groups, trained, totals, gradient, module.step_metrics)

    return run


def all_of(step: Step) -> list[int]:
    return list(range(len(step.is_dead)))


def living(step: Step) -> list[int]:
    return (~step.is_dead).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo"},
        {"loss_type": "grpo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "sapo"},
        {"loss_type": "vespo", "importance_sampling_mode": "token_truncate"},
        {"top_entropy_quantile": 0.5},
        {"max_tokens_per_microbatch": 24},
        {"microbatch_layout": "padded"},
    ],
)
def test_a_dead_group_reaches_no_pass_and_the_gradient_is_as_if_it_did(step, settings):
    found, everything = step(**settings), step(train_all=True, **settings)
    assert int(found.is_dead.sum()) == 4
    assert len(set(found.groups)) == 1
    assert sorted(found.trained) == living(found)
    assert sorted(everything.trained) == all_of(everything)
    assert found.metrics["completions/min_length"] < found.metrics["completions/max_length"]
    assert found.gradient.norm() > 1e-3
    assert (found.gradient - everything.gradient).norm() < 1e-5 * everything.gradient.norm()
    assert found.metrics["loss"] == pytest.approx(everything.metrics["loss"], rel=1e-4, abs=1e-6)
    assert found.metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)


def test_a_dead_group_counts_in_what_averages_divide_by(step):
    found = step(max_tokens_per_microbatch=24)
    assert len(found.totals) > 1
    tokens = found.metrics["completions/mean_length"] * 12
    assert all((totals.completions, totals.tokens) == (12, pytest.approx(tokens)) for totals in found.totals)


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"entropy_coef": 0.01}, {"use_adaptive_entropy": True}])
def test_a_dead_group_is_trained_where_more_than_its_advantage_can_train_it(step, settings):
    found = step(**settings)
    assert int(found.is_dead.sum()) == 4
    assert sorted(found.trained) == all_of(found)
