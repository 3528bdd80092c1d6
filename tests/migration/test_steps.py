"""Batches, and everything that TRL counts in optimizer steps."""

from __future__ import annotations

import pytest
from parsed_config import BASE, ENDLESS, written

from grpo_lightning.migration import migrate

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
SCHEDULER = "model.lr_scheduler.init_args"
VLLM = {"use_vllm": True}


def test_two_devices_share_trls_generation_batch():
    settings = BASE | {"generation_batch_size": 64, "per_device_train_batch_size": 16}
    result = migrate(settings, devices=2)
    assert (result.config["data.batch_size"], result.config["model.num_minibatches"]) == (4, 2)
    assert result.config["trainer.devices"] == 2


def test_a_group_that_spans_devices_in_trl_is_pointed_out():
    result = migrate(BASE | {"per_device_train_batch_size": 4, "num_generations": 16}, devices=4)
    assert result.config["data.batch_size"] == 1 and "0.25 prompts" in result.refused["per_device_train_batch_size"]


def test_warm_up_steps_win_over_the_ratio_as_in_trl():
    result = migrate(BASE | {"warmup_ratio": 0.1, "warmup_steps": 7})
    assert result.config[f"{SCHEDULER}.warmup_steps"] == 7
    assert result.refused["warmup_ratio"] == "warmup_steps decides, as in TRL."


@pytest.mark.parametrize("key", ["fsdp", "deepspeed"])
def test_sharding_is_written_with_the_engine_that_it_needs(key):
    assert "VLLMColocate" in migrate(BASE | {key: "some value"}).refused[key]
    assert "VLLMColocate" not in migrate(BASE | VLLM | {key: "some value"}).refused.get(key, "")


def test_prompts_that_do_not_fit_a_device_name_the_new_size_of_the_step():
    settings = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "num_generations": 14}
    result = migrate(BASE | settings, devices=8)
    assert result.config["data.batch_size"] == 5  # 64 / 14 = 4.57
    reason = result.refused["per_device_train_batch_size"]
    assert "a step has 560 completions instead of 512" in reason  # 5 x 14 x 8; 16 x 4 x 8


def test_more_optimizer_steps_than_prompts_are_pointed_out():
    result = migrate(BASE | {"generation_batch_size": 64, "num_generations": 16})
    assert (result.config["data.batch_size"], result.config["model.num_minibatches"]) == (4, 4)
    assert "8 optimizer steps on 4 prompts per device do not fit" in result.refused["generation_batch_size"]


def test_a_run_whose_length_the_data_decides_leaves_it_to_fit():
    for kind in ("linear", "cosine", "polynomial"):
        config = migrate(ENDLESS | {"lr_scheduler_type": kind, "warmup_ratio": 0.1}).config
        assert (config[f"{SCHEDULER}.name"], config[f"{SCHEDULER}.warmup_steps"]) == (kind, 0.1)
        assert f"{SCHEDULER}.total_steps" not in config
    known = migrate(ENDLESS | {"warmup_ratio": 0.1}, total_steps=40).config
    assert known[f"{SCHEDULER}.total_steps"] == 40


def test_a_schedule_that_follows_a_metric_is_refused():
    result = migrate(BASE | {"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 3})
    assert "has no counterpart; the rate stays constant" in result.refused["lr_scheduler_type"]
    assert "warmup_steps" in result.refused and "model.lr_scheduler.class_path" not in result.config


def test_intervals_that_do_not_divide_are_rounded_up_and_said():
    updates = {"num_iterations": 4}
    result = migrate(BASE | updates | {"eval_strategy": "steps", "eval_steps": 10, "save_steps": 10, "max_steps": 96})
    assert result.config["trainer.val_check_interval"] == 3 and "every 12 instead" in result.refused["eval_steps"]
    assert result.config["checkpoint.every_n_train_steps"] == 12
    short = migrate(BASE | updates | {"max_steps": 10})
    assert "the run ends after 12" in short.refused["max_steps"]


def test_what_trl_does_once_more_at_the_end_is_said():
    result = migrate(BASE | {"eval_strategy": "steps", "eval_steps": 30, "save_steps": 50})
    assert "TRL evaluates once more after the last step, 100" in result.refused["eval_steps"]
    assert "save_steps" not in result.refused  # 50 divides 100


def test_a_share_of_a_run_of_unknown_length_asks_for_it():
    result = migrate(ENDLESS | {"save_steps": 0.05})
    assert "--total_steps" in result.refused["save_steps"]
    assert migrate(ENDLESS | {"save_steps": 0.05}, total_steps=400).config["checkpoint.every_n_train_steps"] == 20


def test_what_evaluation_does_not_take_from_training_is_said():
    evaluated = BASE | {"eval_strategy": "epoch", "top_k": 20}
    assert "evaluation samples without it" in migrate(evaluated).refused["top_k"]
    assert "top_k" not in migrate(BASE | {"top_k": 20}).refused


def test_the_longest_prompt_of_older_trl_is_kept_and_what_happens_to_longer_ones_said(tmp_path):
    settings = BASE | {"max_prompt_length": 512}
    assert written(settings, tmp_path).data.max_prompt_length == 512
    assert "left out" in migrate(settings).refused["max_prompt_length"]
    assert "max_prompt_length" not in migrate(BASE | {"max_prompt_length": None}).lost()


def test_a_checkpoint_of_each_epoch_is_not_one_of_each_evaluation():
    by_steps = migrate(ENDLESS | {"save_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 5}).config
    assert by_steps["checkpoint.save_on_train_epoch_end"] is True
    by_epoch = migrate(ENDLESS | {"save_strategy": "epoch", "eval_strategy": "epoch"}).config
    assert "checkpoint.save_on_train_epoch_end" not in by_epoch
