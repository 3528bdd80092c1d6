from __future__ import annotations

import pytest
from runs import make_data, make_module, make_trainer, write_prompts

from grpo_lightning.callbacks import StepBar
from grpo_lightning.callbacks.step_bar import planned_steps


class Watched(StepBar):
    """Keeps what the line said after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str, str, int]] = []

    def on_train_batch_end(self, *args, **kwargs) -> None:
        super().on_train_batch_end(*args, **kwargs)
        task = self.train_progress_bar
        self.said.append((task.description, task.fields["left"], task.fields["numbers"], int(task.completed)))


def run(tiny_model_dir, tmp_path, max_steps, ckpt_path=None, trainer=None, **settings):
    bar = Watched()
    made = make_trainer(tmp_path, max_steps, enable_progress_bar=True, callbacks=[bar], **(trainer or {}))
    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)), eval_batch_size=2)
    made.fit(make_module(tiny_model_dir, **settings), datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    return bar, made


def test_steps_are_counted_over_epochs_and_optimizer_steps(tiny_model_dir, tmp_path, capsys):
    # 12 prompts in steps of 3 are 4 steps an epoch; 12 optimizer steps, 2 a step, are 6 steps.
    bar, _ = run(tiny_model_dir, tmp_path, 12, num_minibatches=1, num_iterations=2)
    assert [name for name, *_ in bar.said] == [f"step {n}/6" for n in range(1, 7)]
    assert [completed for *_, completed in bar.said] == [1, 2, 3, 4, 5, 6]
    assert all(left.endswith(" left") for _, left, *_ in bar.said) and bar.said[-1][1] == "0 s left"
    assert all(numbers.startswith("reward ") and numbers.endswith(" tok/s") for *_, numbers, _ in bar.said)
    lines = [line for line in capsys.readouterr().out.splitlines() if "━" in line]
    assert len(lines) == 1 and lines[0].startswith("step 6/6 ")


def test_a_resumed_run_goes_on_where_it_stopped(tiny_model_dir, tmp_path):
    _, trainer = run(tiny_model_dir, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "2.ckpt")
    bar, _ = run(tiny_model_dir, tmp_path, 3, tmp_path / "2.ckpt")
    assert [name for name, *_ in bar.said] == ["step 3/3"]


def test_a_resumed_run_with_other_steps_counts_those_that_are_left(tiny_model_dir, tmp_path):
    # An epoch of 12 prompts in 4 steps is behind it; two more are a step each of all 12 prompts: 4 + 2 steps.
    _, trainer = run(tiny_model_dir, tmp_path, -1, trainer={"max_epochs": 1})
    trainer.save_checkpoint(tmp_path / "4.ckpt")
    resumed = make_trainer(tmp_path, -1, max_epochs=3, enable_progress_bar=True, callbacks=[bar := Watched()])
    data = make_data(tmp_path, batch_size=12)
    resumed.fit(make_module(tiny_model_dir), datamodule=data, ckpt_path=tmp_path / "4.ckpt", weights_only=False)
    assert [name for name, *_ in bar.said] == ["step 5/6", "step 6/6"]
    # 4 optimizer steps are behind it, and 4 of the 8 left make two steps.
    bar, _ = run(tiny_model_dir, tmp_path, 8, tmp_path / "4.ckpt", num_minibatches=1, num_iterations=2)
    assert [name for name, *_ in bar.said] == ["step 5/6", "step 6/6"]


def test_the_end_is_the_nearer_of_two_limits_and_may_be_missing(tiny_model_dir, tmp_path):
    _, trainer = run(tiny_model_dir, tmp_path, 2, trainer={"max_epochs": 3, "limit_train_batches": 2})
    limits = [((-1, -1), None), ((7, -1), 7), ((-1, 3), 6), ((5, 3), 5), ((9, 3), 6)]
    for (max_steps, max_epochs), steps in limits:
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = max_epochs, max_steps
        assert planned_steps(trainer, num_updates=1) == steps
    trainer.fit_loop.epoch_loop.max_steps = 5
    assert planned_steps(trainer, num_updates=2) == 3


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_evaluation_alone_has_lightnings_own_line(command, tiny_model_dir, tmp_path):
    trainer = make_trainer(tmp_path, enable_progress_bar=True, callbacks=[bar := StepBar()])
    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)), eval_batch_size=2)
    getattr(trainer, command)(make_module(tiny_model_dir), datamodule=data)
    (task,) = bar.progress.tasks
    assert (task.completed, task.total) == (2, 2)
