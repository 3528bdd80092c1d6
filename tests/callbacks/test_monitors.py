"""A callback that waits for a metric which does not exist is refused; one that does exist is not."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from runs import fit, share_of_digits, write_prompts

from grpo_lightning.callbacks import MonitorCheck
from grpo_lightning.errors import ExplainedError
from grpo_lightning.rewards import BaseRewardFunction


def run(model_dir, tmp_path, *callbacks, **data):
    settings = {"callbacks": [MonitorCheck(), *callbacks], "enable_checkpointing": True, "val_check_interval": 1}
    eval_dataset = str(write_prompts(tmp_path / "eval.jsonl", 4))
    return fit(model_dir, tmp_path, 2, settings, {"eval_dataset": eval_dataset} | data)


def test_a_held_out_metric_that_does_not_exist_is_refused_before_weights_load(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint\.monitor=val/acuracy is no metric.*Did you mean val/accuracy"):
        run(tiny_model_dir, tmp_path, ModelCheckpoint(tmp_path, monitor="val/acuracy"))


def test_of_several_held_out_datasets_each_has_its_own_metrics(tiny_model_dir, tmp_path):
    path = str(write_prompts(tmp_path / "more.jsonl", 4))
    several = {"eval_dataset": {"easy": path, "hard": path}}
    with pytest.raises(ValueError, match=r"Did you mean val/(easy|hard)/accuracy or val/(easy|hard)/accuracy"):
        run(tiny_model_dir, tmp_path, ModelCheckpoint(tmp_path, monitor="val/accuracy"), **several)
    found = run(tiny_model_dir, tmp_path, ModelCheckpoint(tmp_path, monitor="val/hard/accuracy"), **several)
    assert found.steps_done == 2


def test_a_metric_of_steps_that_does_not_exist_ends_the_run_after_the_first(tiny_model_dir, tmp_path):
    with pytest.raises(ExplainedError, match=r"EarlyStopping.*=rewrad is no metric of this run.*Did you mean reward"):
        run(tiny_model_dir, tmp_path, EarlyStopping("rewrad"))


def test_metrics_that_exist_are_waited_for(tiny_model_dir, tmp_path):
    module = run(tiny_model_dir, tmp_path, EarlyStopping("val/accuracy"), ModelCheckpoint(tmp_path, monitor="reward"))
    assert module.steps_done == 2


def test_a_metric_of_the_users_own_whose_name_begins_like_held_out_ones_is_waited_for(tiny_model_dir, tmp_path):
    """value/mean was refused before the first step, as one that no evaluation measures."""

    class Values(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            pl_module.log("value/mean", 1.0)

    kept = ModelCheckpoint(tmp_path, monitor="value/mean", every_n_train_steps=1)
    settings = {"callbacks": [Values(), MonitorCheck(), kept], "enable_checkpointing": True}
    assert fit(tiny_model_dir, tmp_path, 2, settings).steps_done == 2
    assert kept.best_model_score == 1.0


def run_for_two_steps(model_dir, tmp_path, *callbacks, **trainer):
    """Of an epoch of 6: 12 prompts, 2 a step."""
    settings = {"callbacks": [MonitorCheck(), *callbacks], "enable_checkpointing": True, **trainer}
    held_out = {"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4)), "batch_size": 2}
    return fit(model_dir, tmp_path, 2, settings, held_out)


def test_a_run_that_ends_before_its_first_evaluation_says_so(tiny_model_dir, tmp_path, capsys):
    """Lightning evaluates at the end of an epoch, and trainer.max_steps ends a run before: nothing was said of it."""
    module = run_for_two_steps(tiny_model_dir, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "it ends after step 2, and the first evaluation would come after step 6." in said
    assert "val/accuracy" not in module.trainer.callback_metrics


def test_a_checkpoint_that_waits_for_an_evaluation_that_never_comes_is_refused(tiny_model_dir, tmp_path):
    with pytest.raises(ExplainedError, match=r"checkpoint.monitor=val/accuracy would never be measured.*at most 2"):
        run_for_two_steps(tiny_model_dir, tmp_path, ModelCheckpoint(tmp_path, monitor="val/accuracy"))


@pytest.mark.parametrize("interval", [2, 0.34])
def test_a_run_that_evaluates_says_nothing_of_it(tiny_model_dir, tmp_path, capsys, interval):
    module = run_for_two_steps(tiny_model_dir, tmp_path, val_check_interval=interval)
    assert "is not evaluated" not in capsys.readouterr().out and "val/accuracy" in module.trainer.callback_metrics


def in_a_script(model_dir, tmp_path, *callbacks, **trainer):
    """Without the command line, which adds MonitorCheck."""
    settings = {"callbacks": list(callbacks), "enable_checkpointing": True, "val_check_interval": 1, **trainer}
    return fit(model_dir, tmp_path, 2, settings, {"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4))})


class Logging(Callback):
    """Metrics of the user's own: of an evaluation, of an epoch, of its end."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.log("of/epoch", 1.0, on_step=False, on_epoch=True, batch_size=1)

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("of/end", 1.0)

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/mine", 1.0)


@pytest.mark.parametrize("name", ["val/acuracy", "rewrad"])
def test_a_script_that_waits_for_no_metric_is_told_as_the_command_line_is(name, tiny_model_dir, tmp_path):
    """It waited to its end, and no best checkpoint was there."""
    with pytest.raises((ValueError, ExplainedError), match=f"checkpoint.monitor={name} is no metric of this run"):
        in_a_script(tiny_model_dir, tmp_path, ModelCheckpoint(tmp_path, monitor=name, every_n_train_steps=1))


def test_the_first_evaluation_tells_what_a_callback_of_the_users_logs(tiny_model_dir, tmp_path):
    with pytest.raises(ExplainedError, match=r"checkpoint.monitor=val/mien is no metric.*Did you mean val/mine"):
        in_a_script(tiny_model_dir, tmp_path, Logging(), ModelCheckpoint(tmp_path, monitor="val/mien"))
    kept = ModelCheckpoint(tmp_path, monitor="val/mine", every_n_train_steps=1)
    assert in_a_script(tiny_model_dir, tmp_path, Logging(), kept).steps_done == 2
    assert kept.best_model_score == 1.0


@pytest.mark.parametrize(("name", "is_warned"), [("of/end", True), ("of/epoch", False)])
def test_what_a_callback_of_the_users_may_log_later_is_warned_of(name, is_warned, tiny_model_dir, tmp_path, recwarn):
    kept = ModelCheckpoint(tmp_path, monitor=name, save_on_train_epoch_end=True)
    in_a_script(tiny_model_dir, tmp_path, Logging(), kept)
    said = any(f"checkpoint.monitor={name} is no metric" in str(warning.message) for warning in recwarn)
    assert said == is_warned


@pytest.mark.parametrize("name", ["step", "epoch"])
def test_the_newest_checkpoints_may_be_kept_by_what_lightning_counts(name, tiny_model_dir, tmp_path):
    kept = ModelCheckpoint(tmp_path / "kept", monitor=name, mode="max", every_n_train_steps=1)
    assert run(tiny_model_dir, tmp_path, kept).steps_done == 2
    assert kept.best_model_score == {"step": 2, "epoch": 0}[name]


def test_a_script_whose_evaluation_does_not_come_is_warned(tiny_model_dir, tmp_path):
    kept = ModelCheckpoint(tmp_path, monitor="val/accuracy", every_n_train_steps=1)
    with pytest.warns(UserWarning, match=r"checkpoint.monitor=val/accuracy will not be measured.*at most 2"):
        in_a_script(tiny_model_dir, tmp_path, kept, val_check_interval=3)


class LateReward(BaseRewardFunction):
    """Applies to nothing in the first evaluation, like a judge whose server is not there yet."""

    def __call__(self, prompts, completions, trainer_state, **columns):
        return [None if trainer_state.global_step < 2 else 1.0 for _ in completions]


@pytest.mark.parametrize("checks", [[MonitorCheck()], []])
def test_a_held_out_metric_without_a_value_in_the_first_evaluation_is_waited_for(checks, tiny_model_dir, tmp_path):
    """The run ended after its first evaluation, with a metric that its own settings name."""
    kept = ModelCheckpoint(tmp_path, monitor="val/rewards/LateReward", every_n_train_steps=1)
    settings = {"callbacks": [*checks, kept], "enable_checkpointing": True, "val_check_interval": 1}
    held_out = {"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4))}
    assert fit(tiny_model_dir, tmp_path, 2, settings, held_out, eval_rewards=[LateReward()]).steps_done == 2
    assert kept.best_model_score == 1.0


def test_a_reward_that_applies_to_nothing_in_the_first_step_is_waited_for(tiny_model_dir, tmp_path):
    kept = ModelCheckpoint(tmp_path, monitor="rewards/LateReward/mean", every_n_train_steps=1)
    settings = {"callbacks": [MonitorCheck(), kept], "enable_checkpointing": True}
    module = fit(tiny_model_dir, tmp_path, 3, settings, rewards=[share_of_digits, LateReward()])
    assert module.steps_done == 3 and kept.best_model_score == 1.0


def test_a_checkpoint_that_a_later_step_has_decided_on_waits_for_no_evaluation(tiny_model_dir, tmp_path):
    """It was written again by the evaluation after it, in the place of another of the best."""
    kept = ModelCheckpoint(tmp_path / "kept", "{step}", "rewards/LateReward/mean", save_top_k=2, every_n_train_steps=1)
    settings = {"callbacks": [kept], "enable_checkpointing": True, "val_check_interval": 3}
    held_out = {"eval_dataset": str(write_prompts(tmp_path / "eval.jsonl", 4))}
    fit(tiny_model_dir, tmp_path, 3, settings, held_out, rewards=[share_of_digits, LateReward()])
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step=3.ckpt"]
