"""The default optimizer's kernels: fused where the weights are on a GPU and the config leaves the choice open."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from grpo_lightning.training.fused_optimizer import with_fused_kernels

GROUPED = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.01}


def weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))]


def after_three_steps(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step in range(3):
        for index, weight in enumerate(parameters):
            weight.grad = torch.sin(torch.arange(weight.numel()) + step + index).view_as(weight).to(weight.device)
        optimizer.step()
    return [weight.detach().cpu() for weight in parameters]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_steps_are_those_of_the_optimizer_that_was_asked_for(kind):
    def made() -> torch.optim.Optimizer:
        matrix, vector = weights()
        return kind([{"params": [matrix]}, {"params": [vector], "weight_decay": 0.0, "lr": 0.2}], **GROUPED)

    fused = with_fused_kernels(made(), ["cpu"])
    assert type(fused) is kind and all(group["fused"] for group in fused.param_groups)
    torch.testing.assert_close(after_three_steps(fused), after_three_steps(made()))


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.AdamW(weights(), fused=False),
        torch.optim.AdamW(weights(), foreach=True),
        torch.optim.AdamW(weights(), foreach=False),
        torch.optim.Adam(weights(), capturable=True),
        torch.optim.SGD(weights(), lr=0.1),
        type("Own", (torch.optim.AdamW,), {})(weights()),
    ],
    ids=["not fused", "foreach", "a loop", "capturable", "SGD", "a subclass"],
)
def test_what_a_config_says_itself_stays(optimizer):
    assert with_fused_kernels(optimizer, ["cpu"]) is optimizer


def test_weights_on_a_cpu_are_left_alone():
    optimizer = torch.optim.AdamW(weights())
    assert with_fused_kernels(optimizer) is optimizer


def test_a_state_that_was_saved_without_goes_on_without():
    plain = torch.optim.AdamW(weights(), **GROUPED)
    after_three_steps(plain)
    fused = with_fused_kernels(torch.optim.AdamW(weights(), **GROUPED), ["cpu"])
    fused.load_state_dict(deepcopy(plain.state_dict()))
    for ours, theirs in zip(fused.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
        ours.data.copy_(theirs)
    assert not fused.param_groups[0]["fused"]
    assert all(map(torch.equal, after_three_steps(fused), after_three_steps(plain)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernels_that_run_on_a_gpu_are_fused_and_a_resumed_state_goes_on_with_them():
    from torch.profiler import ProfilerActivity, profile

    def made() -> torch.optim.Optimizer:
        return with_fused_kernels(torch.optim.AdamW([nn.Parameter(weight.cuda()) for weight in weights()], lr=0.01))

    whole, first = made(), made()
    expected = after_three_steps(whole)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        after_three_steps(first)
    names = {event.key for event in profiler.key_averages()}
    assert any("FusedAdam" in name for name in names), names
    resumed = made()
    resumed.load_state_dict(deepcopy(first.state_dict()))
    for ours, theirs in zip(resumed.param_groups[0]["params"], first.param_groups[0]["params"], strict=True):
        ours.data.copy_(theirs)
    assert all(map(torch.equal, expected, [p.detach().cpu() for p in first.param_groups[0]["params"]]))
    assert all(map(torch.equal, after_three_steps(resumed), after_three_steps(whole)))
