"""Checkpoints come when they are due, and the best is the best of the weights that it holds."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from runs import make_data, make_module, make_trainer, spoilt, weights, write_prompts

from grpo_lightning.rewards import BaseRewardFunction


class Held(Callback):
    """What each evaluation measured, by the optimizer steps before it."""

    def __init__(self) -> None:
        self.rewards: dict[int, float] = {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.rewards[trainer.global_step] = float(trainer.callback_metrics["val/reward"])


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.ckpt"))


def run(
    model_dir: Path, folder: Path, steps: int, data: dict[str, Any], settings: dict[str, Any], **saving: Any
) -> Any:
    kept = ModelCheckpoint(
        folder / "kept", **{"filename": "{step}", "auto_insert_metric_name": False, "save_top_k": -1, **saving}
    )
    held = Held()
    trainer = make_trainer(
        folder,
        steps,
        callbacks=[held, kept],
        enable_checkpointing=True,
        val_check_interval=1,
        check_val_every_n_epoch=None,
    )
    module = make_module(model_dir, **settings)
    trainer.fit(module, datamodule=make_data(folder, **data))
    return kept, held


def test_a_step_that_passes_a_multiple_is_saved(tiny_model_dir, tmp_path):
    run(tiny_model_dir, tmp_path, 9, {}, {"num_iterations": 3}, every_n_train_steps=2)
    assert steps_saved(tmp_path / "kept") == [3, 6, 9]


def test_steps_without_a_multiple_are_not(tiny_model_dir, tmp_path):
    run(tiny_model_dir, tmp_path, 12, {}, {"num_iterations": 3}, every_n_train_steps=5)
    assert steps_saved(tmp_path / "kept") == [6, 12]  # which pass 5 and 10


def test_checkpoints_go_on_after_an_update_that_was_skipped(tiny_model_dir, tmp_path):
    def rewards(completions: Any, **columns: Any) -> list[float]:
        return [float(n % 2) for n in range(len(completions))]

    settings = {"num_iterations": 2, "rewards": [rewards], "optimizer": spoilt(1)}
    run(tiny_model_dir, tmp_path, 5, {}, settings, every_n_train_steps=2)
    assert steps_saved(tmp_path / "kept") == [3, 5]  # of 1, 3 and 5, none of them a multiple of 2


@pytest.mark.parametrize(("interval", "expected"), [(timedelta(0), [1, 2, 3]), (timedelta(hours=1), [])])
def test_an_interval_in_time_is_heeded(interval, expected, tiny_model_dir, tmp_path):
    run(tiny_model_dir, tmp_path, 3, {}, {}, train_time_interval=interval)
    assert steps_saved(tmp_path / "kept") == expected


@pytest.mark.parametrize("save_last", [None, True, "link"])
def test_the_score_of_a_checkpoint_is_of_its_own_weights(save_last, tiny_model_dir, tmp_path):
    data = {"eval_dataset": str(write_prompts(tmp_path / "held_out.jsonl", 8))}
    settings = {"optimizer": lambda weights: torch.optim.SGD(weights, lr=5.0)}
    saving = {"monitor": "val/reward", "mode": "max", "every_n_train_steps": 1, "save_last": save_last}
    kept, held = run(tiny_model_dir, tmp_path, 4, data, settings, **saving)
    scores = {int(Path(path).stem): float(score) for path, score in kept.best_k_models.items()}
    assert len(set(scores.values())) > 1, "all weights score alike"
    assert scores == held.rewards
    assert int(Path(kept.best_model_path).stem) == max(held.rewards, key=lambda step: held.rewards[step])
    best = torch.load(kept.best_model_path, weights_only=True)
    assert best["global_step"] == int(Path(kept.best_model_path).stem)
    if save_last:
        last = torch.load(tmp_path / "kept/last.ckpt", weights_only=True)
        assert last["global_step"] == 4
        (known,) = (state for key, state in last["callbacks"].items() if key.startswith("ModelCheckpoint"))
        assert known["best_model_path"] == kept.best_model_path
        assert known["best_k_models"].keys() == kept.best_k_models.keys()  # that of its own evaluation among them


def test_a_run_that_goes_on_before_the_evaluation_lets_it_decide(tiny_model_dir, tmp_path):
    data = {"eval_dataset": str(write_prompts(tmp_path / "held_out.jsonl", 4))}

    def fit(name: str, steps: int, ckpt: Path | None = None) -> list[int]:
        saving = {"monitor": "val/reward", "mode": "max", "every_n_train_steps": 3, "save_last": True}
        kept = ModelCheckpoint(tmp_path / name, "{step}", auto_insert_metric_name=False, **saving)
        of_time = {"val_check_interval": 4, "check_val_every_n_epoch": None}
        trainer = make_trainer(tmp_path, steps, callbacks=[kept], enable_checkpointing=True, **of_time)
        trainer.fit(
            make_module(tiny_model_dir), datamodule=make_data(tmp_path, **data), ckpt_path=ckpt, weights_only=True
        )
        return steps_saved(tmp_path / name)

    assert fit("whole", 5) == [4]
    assert fit("parts", 3) == []
    assert fit("parts", 5, tmp_path / "parts/last.ckpt") == [4]


@pytest.mark.parametrize(("update", "saved"), [(1, []), (2, []), (3, ["last", "2"]), (4, ["last", "2"])])
def test_an_error_between_the_updates_of_a_step_costs_no_checkpoint(update, saved, tiny_model_dir, tmp_path, recwarn):
    """save_on_exception put the weights of half a step in the place of last.ckpt, and a resumed run trained on it again."""
    kept = ModelCheckpoint(
        tmp_path / "kept",
        "{step}",
        auto_insert_metric_name=False,
        save_last=True,
        save_top_k=-1,
        every_n_train_steps=2,
        save_on_exception=True,
        enable_version_counter=False,
    )
    anyhow = OnExceptionCheckpoint(str(tmp_path), "anyhow")
    trainer = make_trainer(tmp_path, 8, callbacks=[kept, anyhow], enable_checkpointing=True)
    module = make_module(tiny_model_dir, num_iterations=2)
    updates, step = iter(range(1, 9)), module.optimization.step

    def failing() -> torch.Tensor:
        if next(updates) == update:
            raise ArithmeticError("no memory")
        return step()

    module.optimization.step = failing
    with pytest.raises(ArithmeticError) as raised:
        trainer.fit(module, datamodule=make_data(tmp_path))
    there = {path.stem for path in (tmp_path / "kept").glob("*.ckpt")}
    half = update % 2 == 0
    assert half == ("checkpoint.save_on_exception saved nothing" in str(getattr(raised.value, "__notes__", "")))
    assert there == set(saved)
    assert half == any("1 of whose optimizer steps" in str(warning.message) for warning in recwarn)
    if "last" in there:
        last = torch.load(tmp_path / "kept/last.ckpt", weights_only=True)
        assert (last["global_step"], last["steps_done"]) == ((update - 1) // 2 * 2, (update - 1) // 2)


@pytest.mark.parametrize("metric", ["reward", "value/mean", "value/mean_step"])
def test_a_metric_of_steps_waits_for_no_evaluation(metric, tiny_model_dir, tmp_path):
    class Values(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            twice = metric.endswith("_step")
            pl_module.log("value/mean", float(trainer.global_step), on_step=True, on_epoch=twice, batch_size=1)

    kept = ModelCheckpoint(tmp_path / "kept", "{step}", monitor=metric, save_top_k=-1, every_n_train_steps=1)
    data = {"eval_dataset": str(write_prompts(tmp_path / "held_out.jsonl", 4))}
    trainer = make_trainer(tmp_path, 3, callbacks=[Values(), kept], enable_checkpointing=True)  # evaluates after 4
    trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path, **data))
    scores = {int(Path(path).stem.removeprefix("step=")): float(score) for path, score in kept.best_k_models.items()}
    assert sorted(scores) == [1, 2, 3]
    assert metric == "reward" or scores == {1: 1.0, 2: 2.0, 3: 3.0}


def test_a_link_leads_to_the_last_step_also_where_an_earlier_one_was_the_best(tiny_model_dir, tmp_path):
    """last.ckpt led to the best of a run whose reward fell ever since, and --ckpt_path last went back to it."""

    class Falling(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            assert (tmp_path / "kept/last.ckpt").exists() == (trainer.global_step > 1)
            if trainer.global_step > 1:
                saved = torch.load(tmp_path / "kept/last.ckpt", weights_only=True)["global_step"]
                assert saved == trainer.global_step - 1
            pl_module.log("falling", -float(trainer.global_step))

    options = {"monitor": "falling", "mode": "max", "save_last": "link", "every_n_train_steps": 1}
    kept = ModelCheckpoint(tmp_path / "kept", "{step}", **options)
    trainer = make_trainer(tmp_path, 4, callbacks=[Falling(), kept], enable_checkpointing=True)
    trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path))
    assert Path(kept.best_model_path).name == "step=1.ckpt" and Path(kept.best_model_path).exists()
    assert torch.load(tmp_path / "kept/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("interval", [1, 2])
def test_a_checkpoint_that_waited_for_its_evaluation_goes_on_like_any_other(interval, tiny_model_dir, tmp_path):
    data = {"eval_dataset": str(write_prompts(tmp_path / "held_out.jsonl", 4))}

    def fit(name: str, ckpt: Path | None = None) -> tuple[dict[str, torch.Tensor], Held]:
        kept = ModelCheckpoint(
            tmp_path / name, "{step}", monitor="val/reward", save_top_k=-1, every_n_train_steps=1, mode="max"
        )
        held, of_time = Held(), {"val_check_interval": interval, "check_val_every_n_epoch": None}
        trainer = make_trainer(tmp_path, 6, callbacks=[held, kept], enable_checkpointing=True, **of_time)
        module = make_module(tiny_model_dir)
        trainer.fit(module, datamodule=make_data(tmp_path, **data), ckpt_path=ckpt, weights_only=True)
        return weights(module), held

    expected, whole = fit("whole")
    found, resumed = fit("resumed", tmp_path / "whole" / "step=4.ckpt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed.rewards == {step: reward for step, reward in whole.rewards.items() if step > 4}


class EarlyReward(BaseRewardFunction):
    """Applies to nothing once two steps are done, like a judge whose server is gone."""

    def __call__(self, prompts, completions, trainer_state, **columns):
        return [0.5 if trainer_state.global_step < 2 else None for _ in completions]


@pytest.mark.parametrize(
    ("name", "scored"), [("val/rewards/EarlyReward", {"1"}), ("rewards/EarlyReward/mean", {"1", "2"})]
)
def test_weights_without_a_score_are_given_none_of_others(name, scored, tiny_model_dir, tmp_path):
    """They had that of the step or evaluation before."""
    data = {"eval_dataset": str(write_prompts(tmp_path / "held_out.jsonl", 4))}
    settings = {"rewards": [lambda completions: [0.0 for _ in completions], EarlyReward()]}
    saving = {"monitor": name, "every_n_train_steps": 1, "save_last": True}
    kept, _ = run(tiny_model_dir, tmp_path, 3, data, settings, **saving)
    assert {Path(path).stem for path in kept.best_k_models} == scored
    assert torch.load(tmp_path / "kept/last.ckpt", weights_only=True)["global_step"] == 3
