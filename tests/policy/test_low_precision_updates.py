"""Steps that rounding takes away are refused, and those that are kept account of land."""

from __future__ import annotations

import bitsandbytes
import optimi
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import fit, make_data, make_module, make_trainer
from torch import nn

from grpo_lightning.policy.low_precision_updates import (
    check_steps_land,
    keeps_small_steps,
    moved_share,
    stays_without_gradient,
)
from grpo_lightning.policy.weight_sample import WeightSample

BF16_TRUE = {"precision": "bf16-true"}


def torch_adamw(lr=1e-6):
    return lambda params: torch.optim.AdamW(params, lr=lr, weight_decay=0.0)


def kahan_adamw(lr=1e-6):
    return lambda params: optimi.AdamW(params, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)


def weights(dtype=torch.bfloat16):
    """As of a language model: normal, with a standard deviation of 0.02."""
    return nn.Parameter((torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype))


def test_a_step_moves_the_weights_that_it_reaches_half_way_to_a_neighbour_of():
    # Neighbours of 1.0, 0.5 and 2**-10 in bfloat16 are 2**-7, 2**-8 and 2**-17 above.
    weight = torch.tensor([1.0, 0.5, 2.0**-10]).bfloat16()
    assert moved_share([weight], 2.0**-18) == (0, 3)  # half way is a tie, and goes to the even neighbour
    assert moved_share([weight], 1.1 * 2.0**-18) == (1, 3)
    assert moved_share([weight], 1.1 * 2.0**-9) == (2, 3)
    assert moved_share([weight.float()], 1e-6) == (3, 3)


@pytest.mark.parametrize(
    ("factory", "keeps"),
    [
        (torch_adamw(), False),
        (lambda params: torch.optim.AdamW(params, foreach=True, weight_decay=0.1), False),
        (lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9), False),
        (lambda params: bitsandbytes.optim.AdamW8bit(params), False),
        (lambda params: optimi.AdamW(params, lr=1e-3, kahan_sum=False), False),
        (lambda params: torch.optim.AdamW(params, lr=torch.tensor(1e-3)), False),  # of torchao's it must stay a tensor
        (kahan_adamw(), True),
        (lambda params: optimi.AdamW(params, lr=1e-3), True),
    ],
)
def test_an_optimizer_is_asked_by_trying_it_whether_small_steps_add_up(factory, keeps):
    state = torch.get_rng_state()
    assert keeps_small_steps(factory, torch.bfloat16, torch.device("cpu")) is keeps
    assert torch.equal(torch.get_rng_state(), state)


def test_every_optimizer_keeps_small_steps_of_float32_weights_that_are_not_smaller_still():
    weight = weights(torch.float32)
    check_steps_land(torch_adamw()([weight]), torch_adamw())  # raises nothing: there is no weight in half precision


@pytest.mark.parametrize("lr", [1e-6, 3e-6])
def test_bfloat16_weights_under_a_plain_optimizer_are_refused_with_the_share_that_moves(lr):
    weight = weights()
    moved = (weight.data + lr != weight.data).float().mean().item()
    assert 0 < moved < 0.1
    with pytest.raises(
        ValueError, match=rf"AdamW with lr={lr:g} trains bfloat16 weights.* changes {moved:.1%}".replace("+", r"\+")
    ):
        check_steps_land(torch_adamw(lr)([weight]), torch_adamw(lr))


def test_a_rate_that_moves_a_tenth_of_the_weights_is_not_refused():
    weight = weights()
    lr = 1e-4
    assert (weight.data + lr != weight.data).float().mean().item() >= 0.1
    check_steps_land(torch_adamw(lr)([weight]), torch_adamw(lr))


def test_the_rate_that_counts_is_the_one_that_a_warm_up_leads_to():
    weight, factory = weights(), torch_adamw(1e-4)
    optimizer = factory([weight])
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-7)
    check_steps_land(optimizer, factory)


def test_a_run_whose_steps_round_away_is_refused_before_its_first_step(tiny_model_dir, tmp_path):
    with pytest.raises(
        ValueError, match=r"trainer\.precision=bf16-mixed.*optimi\.AdamW.*model\.allow_rounded_steps=true"
    ):
        fit(tiny_model_dir, tmp_path, trainer=BF16_TRUE, optimizer=torch_adamw())


def test_with_the_override_it_runs_and_says_how_few_weights_have_changed(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, trainer=BF16_TRUE, optimizer=torch_adamw(), allow_rounded_steps=True)
    assert module.step_metrics["update/changed_since_start"] < 0.1


def test_adapters_are_float32_and_not_refused_under_bf16_true(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, trainer=BF16_TRUE, optimizer=torch_adamw(), finetuning_type="lora")
    assert module.step_metrics["update/changed_since_start"] > 0.3  # A's gradient is zero in the first step, B's is not


def changed_after(factory, dtype, steps):
    """Share of changed weights after the first and after the last of so many steps down the same slope."""
    weight = weights(dtype)
    sample, optimizer = WeightSample([weight]), factory([weight])
    slope, shares = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), []
    for _ in range(steps):
        weight.grad = slope.to(dtype)
        optimizer.step()
        shares.append(sample.changed().mean().item())
    return shares[0], shares[-1]


def test_the_share_of_changed_weights_grows_where_steps_add_up_and_stays_where_they_round_away():
    first, last = changed_after(torch_adamw(3e-6), torch.bfloat16, 20)
    assert 0 < first == last < 0.1
    first, last = changed_after(kahan_adamw(3e-6), torch.bfloat16, 20)
    assert last > 3.6 * first > 0
    first, last = changed_after(torch_adamw(3e-6), torch.float32, 2)
    assert first > 0.99


def test_the_sample_counts_weights_that_differ_from_its_start_and_not_the_last_step():
    weight, frozen = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8), requires_grad=False)
    sample = WeightSample([weight, frozen])
    weight.data[:2] = 1.0
    frozen.data[:] = 1.0
    assert sample.changed().tolist() == [1.0, 1.0] + [0.0] * 6
    weight.data[1] = 0.0
    weight.data[2] = -1.0
    assert sample.changed().tolist() == [1.0, 0.0, 1.0] + [0.0] * 5


def test_a_resumed_run_compares_with_what_training_started_from(tiny_model_dir, tmp_path):
    def run(ckpt_path=None, **trainer):
        module = make_module(tiny_model_dir, optimizer=kahan_adamw(1e-5))
        make_trainer(tmp_path, 4, **BF16_TRUE, **trainer).fit(
            module, datamodule=make_data(tmp_path), ckpt_path=ckpt_path
        )
        return module

    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole = run(callbacks=[checkpoints], enable_checkpointing=True)
    resumed = run(tmp_path / "step=2.ckpt")
    name = "update/changed_since_start"
    assert resumed.step_metrics[name] == whole.step_metrics[name] > 0
    for found, wanted in zip(resumed.policy.model.parameters(), whole.policy.model.parameters(), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("factory", "dtype", "stays"),
    [
        (torch_adamw(), torch.float16, False),
        (lambda params: torch.optim.AdamW(params, foreach=True), torch.float16, False),
        (lambda params: torch.optim.AdamW(params, eps=1e-4), torch.float16, True),
        (lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9), torch.float16, True),
        (torch_adamw(), torch.bfloat16, True),
        (torch_adamw(), torch.float32, True),
    ],
)
def test_an_optimizer_is_asked_by_trying_it_whether_weights_without_gradient_stay_numbers(factory, dtype, stays):
    assert stays_without_gradient(factory, dtype, torch.device("cpu")) is stays


def test_an_optimizer_that_makes_nan_of_float16_weights_is_refused_before_the_first_step(tiny_model_dir, tmp_path):
    settings = {"trainer": {"precision": "16-true"}, "allow_rounded_steps": True}
    with pytest.raises(ValueError, match=r"AdamW makes NaN of float16 weights .* or an eps of 1e-4"):
        fit(tiny_model_dir, tmp_path, optimizer=torch_adamw(1e-3), **settings)
    eps = {"optimizer": lambda params: torch.optim.AdamW(params, lr=1e-3, eps=1e-4)}
    module = fit(tiny_model_dir, tmp_path, 2, **eps, **settings)
    assert all(weight.isfinite().all() for weight in module.policy.model.parameters())
