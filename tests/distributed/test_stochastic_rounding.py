"""An optimizer that draws random numbers, as stochastic rounding does, moves the weights of all ranks alike."""

from __future__ import annotations

from pathlib import Path

import torch
from copy_generator import CopyGenerator
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer

BITS_LOST = 16
"""Of float32 in bfloat16."""


class RoundedSGD(torch.optim.SGD):
    """Steps in float32 that are rounded up or down at random, each with the probability that makes the mean exact."""

    @torch.no_grad()
    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            exact = (weight.float() - self.param_groups[0]["lr"] * weight.grad.float()).view(torch.int32)
            noise = torch.randint(0, 1 << BITS_LOST, weight.shape, dtype=torch.int32)
            weight.copy_(((exact + noise) & -(1 << BITS_LOST)).view(torch.float32))


def train(folder: Path, model_dir: Path, ranks: int, resumed: Path | None = None) -> dict[str, torch.Tensor]:
    """Four updates, two a step; the weights of this rank and a number drawn after the last."""
    module = make_module(
        model_dir,
        generator=CopyGenerator(),
        optimizer=lambda parameters: RoundedSGD(parameters, lr=1e-3),
        num_minibatches=2,
    )
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    saves = {"callbacks": [checkpoints], "enable_checkpointing": True}
    strategy = "ddp" if ranks > 1 else "auto"
    trainer = make_trainer(folder, 4, devices=ranks, strategy=strategy, precision="bf16-true", **saves)
    trainer.fit(module, datamodule=make_data(folder, batch_size=4), ckpt_path=resumed)
    return {"drawn": torch.rand(1)} | {name: p.detach().clone() for name, p in module.policy.model.named_parameters()}


def test_ranks_draw_the_same_numbers_in_a_step_of_the_optimizer_and_their_own_around_it(tmp_path, tiny_model_dir):
    first, second = run_ranks(2, train, tmp_path, tiny_model_dir, 2)
    assert first.pop("drawn") != second.pop("drawn")  # dropout is a rank's own
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_resumed_run_draws_again_what_it_would_have_drawn(tmp_path, tiny_model_dir):
    (whole,) = run_ranks(1, train, tmp_path, tiny_model_dir, 1)
    (resumed,) = run_ranks(1, train, tmp_path, tiny_model_dir, 1, tmp_path / "step=2.ckpt")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_two_steps_do_not_draw_the_same_numbers(tmp_path, tiny_model_dir):
    (before,) = run_ranks(1, drawn_in_steps, tmp_path, tiny_model_dir)
    assert len(before) == len(set(before)) == 4


def drawn_in_steps(folder: Path, model_dir: Path) -> list[float]:
    """What an optimizer draws in each of four updates."""
    drawn: list[float] = []

    class Drawing(torch.optim.SGD):
        def step(self, closure=None):
            drawn.append(torch.rand(1).item())
            super().step(closure)

    module = make_module(
        model_dir, generator=CopyGenerator(), optimizer=lambda p: Drawing(p, lr=1e-3), num_minibatches=2
    )
    make_trainer(folder, 4, devices=1).fit(module, datamodule=make_data(folder, batch_size=4))
    return drawn
