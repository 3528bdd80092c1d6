"""KL estimators by hand: values, gradients, and a user's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.kl import kl_estimator
from grpo_lightning.algorithm.objective import Objective
from grpo_lightning.algorithm.token_batch import TokenBatch

GAP = math.log(0.25 / 0.5)  # logprob - ref of the one token


def absolute(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return (logprobs - ref_logprobs).abs()


def averaged(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return absolute(logprobs, ref_logprobs).mean()


def one_token() -> tuple[Tensor, TokenBatch]:
    logprobs = torch.tensor([0.25], dtype=torch.float64).log().requires_grad_()
    tokens = TokenBatch(
        rows=torch.tensor([0]),
        mask=torch.tensor([True]),
        lengths=torch.tensor([1]),
        advantages=torch.zeros(1, dtype=torch.float64),
        ref_logprobs=torch.tensor([0.5], dtype=torch.float64).log(),
    )
    return logprobs, tokens


@pytest.mark.parametrize(
    ("estimator", "corrected", "value", "gradient"),
    [
        ("k1", True, GAP, GAP + 1),
        ("k2", False, GAP**2 / 2, GAP),
        ("k2", True, GAP**2 / 2, GAP**2 / 2 + GAP),
        ("k3", False, 2 + GAP - 1, 1 - 2),
        ("k3", True, 2 + GAP - 1, GAP),
        (f"{__name__}.absolute", False, -GAP, -1.0),
    ],
)
def test_an_estimator_gives_its_value_and_with_the_ratio_its_unbiased_gradient(
    estimator: str, corrected: bool, value: float, gradient: float
):
    logprobs, tokens = one_token()
    objective = Objective(
        beta=0.5, kl_estimator=estimator, use_bias_correction_kl=corrected, importance_sampling_correction=False
    )
    loss, metrics = objective.loss(tokens, logprobs, None, StepTotals(1, 1))
    loss.backward()
    assert metrics.result()["kl"] == pytest.approx(value)
    assert logprobs.grad is not None and logprobs.grad.item() == pytest.approx(0.5 * gradient)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (f"{__name__}.averaged", r"averaged' gave a KL of shape \(\) for 1 tokens. Return one value per token"),
        (lambda logprobs, ref_logprobs: None, "'<lambda>' gave a KL that is a NoneType for 1 tokens"),
    ],
)
def test_an_estimator_that_averages_or_returns_nothing_is_told_so(estimator, said):
    logprobs, tokens = one_token()
    objective = Objective(beta=0.5, kl_estimator=estimator, importance_sampling_correction=False)
    with pytest.raises(ValueError, match=said):
        objective.loss(tokens, logprobs, None, StepTotals(1, 1))


class Scaled:
    """An estimator that is made."""

    def __call__(self, logprobs, ref_logprobs):
        return 2 * (logprobs - ref_logprobs)


def test_a_class_is_made_into_an_estimator_and_a_number_is_none():
    assert kl_estimator(Scaled)(torch.tensor([1.0]), torch.tensor([0.25])).item() == 1.5
    with pytest.raises(ValueError, match=r"model.kl_estimator=3 is no name, no import path"):
        kl_estimator(3)
