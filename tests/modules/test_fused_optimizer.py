"""By which kernels Adam steps: fused ones on a GPU where the config leaves the choice open, and this run's after a resume."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_data, make_module, make_trainer, weights
from torch import Tensor, nn

from grpo_lightning.training import fused_optimizer
from grpo_lightning.training.fused_optimizer import settle_kernels

GROUPED = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.01}


@pytest.fixture
def on_cpu(monkeypatch) -> None:
    """Fused kernels are for the CPU as well."""
    monkeypatch.setattr(fused_optimizer, "DEVICE_TYPES", ("cuda", "cpu"))


def two_weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))]


def after_three_steps(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step in range(3):
        for index, weight in enumerate(parameters):
            weight.grad = torch.sin(torch.arange(weight.numel()) + step + index).view_as(weight)
        optimizer.step()
    return [weight.detach() for weight in parameters]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_steps_are_those_of_the_optimizer_that_was_asked_for(on_cpu, kind):
    def made() -> torch.optim.Optimizer:
        matrix, vector = two_weights()
        return kind([{"params": [matrix]}, {"params": [vector], "weight_decay": 0.0, "lr": 0.2}], **GROUPED)

    given = made()
    fused = settle_kernels(given)
    assert fused is given and all(group["fused"] for group in fused.param_groups)
    assert {name: fused.defaults[name] for name in GROUPED} == GROUPED  # for groups that are added later
    torch.testing.assert_close(after_three_steps(fused), after_three_steps(made()))


@pytest.mark.parametrize(
    "given", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"capturable": True}, {"differentiable": True}]
)
def test_what_a_config_says_itself_stays(on_cpu, given):
    optimizer = settle_kernels(torch.optim.AdamW(two_weights(), **given))
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in given} == given and not group["fused"]


def test_subclasses_and_other_optimizers_are_left_alone(on_cpu):
    own = type("Own", (torch.optim.AdamW,), {})(two_weights())
    assert not settle_kernels(own).param_groups[0]["fused"]
    assert not settle_kernels(torch.optim.SGD(two_weights(), lr=0.1)).param_groups[0]["fused"]


def test_weights_on_a_cpu_are_stepped_as_torch_chooses():
    assert not settle_kernels(torch.optim.AdamW(two_weights())).param_groups[0]["fused"]


@pytest.mark.parametrize("saved_fused", [True, False])
def test_a_loaded_state_is_stepped_by_the_kernels_of_this_run(on_cpu, saved_fused):
    before = settle_kernels(torch.optim.AdamW(two_weights(), fused=saved_fused, **GROUPED))
    now = settle_kernels(torch.optim.AdamW(two_weights(), fused=not saved_fused, **GROUPED))
    after_three_steps(before)
    now.load_state_dict(deepcopy(before.state_dict()))
    for ours, theirs in zip(now.param_groups[0]["params"], before.param_groups[0]["params"], strict=True):
        ours.data.copy_(theirs)
    assert now.param_groups[0]["fused"] is not saved_fused
    torch.testing.assert_close(after_three_steps(now), after_three_steps(before))


def adam(**options) -> partial:
    return partial(torch.optim.AdamW, lr=1e-3, **options)


def test_a_run_its_rehearsal_and_its_resumed_run_have_the_same_kernels(on_cpu, tiny_model_dir, tmp_path: Path):
    def run(folder: str, optimizer: partial, ckpt_path: Path | None = None):
        module = make_module(tiny_model_dir, optimizer=optimizer)
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(tmp_path, 2, callbacks=[saving], enable_checkpointing=True)
        trainer.fit(module, datamodule=make_data(tmp_path), ckpt_path=ckpt_path)
        return module, trainer.optimizers[0].param_groups[0]["fused"], weights(module)

    module, is_fused, whole = run("fused", adam())
    assert is_fused
    assert module.workload().optimizer_factory(two_weights()).param_groups[0]["fused"]
    _, resumed_is_fused, resumed = run("resumed", adam(), tmp_path / "fused" / "step=1.ckpt")
    assert resumed_is_fused and all(torch.equal(whole[name], resumed[name]) for name in whole)
    _, is_fused, _ = run("plain", adam(fused=False), tmp_path / "fused" / "step=1.ckpt")
    assert is_fused is False


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_fused_kernel_runs_and_counts_lie_where_the_kernels_want_them():
    from torch.profiler import ProfilerActivity, profile

    def made(**options) -> torch.optim.Optimizer:
        torch.manual_seed(0)
        return settle_kernels(torch.optim.AdamW([nn.Parameter(torch.randn(8, 8, device="cuda"))], lr=0.01, **options))

    def step(optimizer: torch.optim.Optimizer) -> None:
        for weight in optimizer.param_groups[0]["params"]:
            weight.grad = torch.ones_like(weight)
        optimizer.step()

    fused, plain = made(), made(foreach=True)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step(fused)
        torch.cuda.synchronize()
    names = {event.key for event in profiler.key_averages()}
    assert any("FusedAdam" in name for name in names), names
    step(plain)
    for source, target, device in ((fused, made(foreach=True), "cpu"), (plain, made(), "cuda")):
        target.load_state_dict(deepcopy(source.state_dict()))
        (state,) = target.state.values()
        assert state["step"].device.type == device and float(state["step"]) == 1
        step(target)
