"""Configs of TRL's other trainers, as the commands sft, dpo and rm read them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

from grpo_lightning.commands.migrate import main
from grpo_lightning.commands.stage_cli import CLIS
from grpo_lightning.migration import migrate_stage

TRAINERS = {
    "sft": (SFTConfig, CLIS["sft"]),
    "dpo": (DPOConfig, CLIS["dpo"]),
    "kto": (KTOConfig, CLIS["dpo"]),
    "reward": (RewardConfig, CLIS["rm"]),
}
BASE = {"model_name_or_path": "some/model", "dataset_name": "some/pairs", "max_steps": 100}


def parsed(trainer: str, settings: dict[str, Any], tmp_path) -> Any:
    """What our own parser makes of the migrated settings."""

    class Parsed(TRAINERS[trainer][1]):
        def instantiate_classes(self) -> None:
            pass  # it would read the model

    (tmp_path / "new.yaml").write_text(migrate_stage(trainer, settings).to_yaml("a test"))
    return Parsed(args=["--config", str(tmp_path / "new.yaml")], run=False).config


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_field_of_trl_is_placed_or_refused_with_its_reason(trainer):
    defaults = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(TRAINERS[trainer][0])
        if f.init and not f.default is f.default_factory is dataclasses.MISSING
    }
    result = migrate_stage(trainer, defaults | BASE)
    assert set(result.mapped) | set(result.refused) >= set(defaults)
    unknown = [key for key, reason in result.refused.items() if "is unknown to TRL" in reason]
    assert unknown == []


def test_a_dpo_config_is_a_run_of_dpo(tmp_path):
    theirs = {"beta": 0.2, "loss_type": ["robust"], "label_smoothing": 0.1, "precompute_ref_log_probs": True}
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 3e-6}
    config = parsed("dpo", {**BASE, **theirs, **batches, "use_peft": True, "max_length": 700}, tmp_path)
    model = config.model
    assert (model.loss_type, model.beta, model.label_smoothing) == ("robust", 0.2, 0.1)
    assert model.precompute_ref_log_probs and model.finetuning_type == "lora" and model.lora_dropout == 0.0
    assert (config.data.batch_size, model.max_completion_length, config.data.converter) == (8, 700, "dpo")
    assert model.optimizer.init_args.lr == 3e-6 and config.trainer.max_steps == 100


def test_an_sft_config_is_a_run_of_sft(tmp_path):
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    config = parsed("sft", {**BASE, **batches, "use_peft": True, "lora_dropout": 0.1, "max_length": 700}, tmp_path)
    assert (config.data.batch_size, config.data.converter, config.model.max_completion_length) == (8, "sft", 700)
    assert config.model.optimizer.init_args.lr == 2e-5 and config.model.lora_dropout == 0.1  # which TRL leaves on here


def test_what_an_sft_config_asks_for_and_has_no_place_is_said_and_defaults_are_not():
    defaults = {"packing": False, "assistant_only_loss": False, "dataset_text_field": "text", "shuffle_dataset": False}
    assert not defaults.keys() & migrate_stage("sft", BASE | defaults).refused.keys()
    wanted = {"packing": True, "assistant_only_loss": True, "loss_type": "dft", "completion_only_loss": False}
    wanted |= {"neftune_noise_alpha": 5.0, "max_length": None}
    refused = migrate_stage("sft", BASE | wanted).refused
    assert wanted.keys() <= refused.keys()
    assert "lose their end" in refused["max_length"] and "noise" in refused["neftune_noise_alpha"]


def test_a_kto_config_is_a_run_of_dpo_on_labels(tmp_path):
    config = parsed("kto", {**BASE, "desirable_weight": 1.5, "beta": 0.3}, tmp_path)
    assert (config.model.loss_type, config.model.desirable_weight, config.model.beta) == ("kto", 1.5, 0.3)
    assert config.data.converter == "kto"


@pytest.mark.parametrize(
    ("trainer", "strategy", "shuffles"),
    [
        ("kto", {}, False),
        ("kto", "random", True),
        ("dpo", {}, True),
        ("dpo", "sequential", False),
        ("reward", {}, True),
        ("sft", {}, True),
        ("sft", "sequential", False),
    ],
)
@pytest.mark.parametrize("shuffled_once", [False, True])
def test_rows_come_in_the_order_of_trls_sampler(tmp_path, trainer, strategy, shuffles, shuffled_once):
    given: dict[str, Any] = {"train_sampling_strategy": strategy} if strategy else {}
    if trainer == "sft":
        given["shuffle_dataset"] = shuffled_once  # before the sampler, whose order it does not decide
    assert parsed(trainer, BASE | given, tmp_path).data.shuffle is shuffles
    assert "train_sampling_strategy" not in migrate_stage(trainer, BASE | given).refused


def test_an_order_without_counterpart_and_rows_that_fill_no_step_are_said():
    result = migrate_stage("reward", BASE | {"train_sampling_strategy": "group_by_length"})
    assert "data.shuffle" in result.refused["train_sampling_strategy"]
    assert any("rows at the end of an epoch that fill none are left out" in note for note in result.notes)
    full = migrate_stage("reward", BASE | {"dataloader_drop_last": True})
    assert "dataloader_drop_last" not in full.refused and not any("fill none" in note for note in full.notes)


def test_the_kl_divergence_of_a_kto_step_is_said_to_be_of_the_whole_step():
    split = migrate_stage("kto", BASE | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})
    assert "from 2 rows at a time" in split.refused["gradient_accumulation_steps"]
    assert split.config["data.batch_size"] == 8
    assert "gradient_accumulation_steps" not in migrate_stage("kto", BASE | {"gradient_accumulation_steps": 1}).refused


def test_a_reward_config_is_a_run_of_rm(tmp_path):
    config = parsed(
        "reward", {**BASE, "center_rewards_coefficient": 0.01, "eval_strategy": "steps", "eval_steps": 20}, tmp_path
    )
    assert (config.model.center_rewards_coefficient, config.model.max_length) == (0.01, 1024)
    assert config.model.optimizer.init_args.lr == 1e-4 and config.trainer.val_check_interval == 20


@pytest.mark.parametrize(
    ("settings", "loss", "reason"),
    [
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
            "sigmoid",
            "Written: sigmoid. There is one loss",
        ),
        ({"loss_type": "exo_pair"}, "sigmoid", "Written: sigmoid"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "ipo", "It has no effect on ipo"),
        ({"num_generations": 4}, "sigmoid", "samples nothing"),
    ],
)
def test_what_has_no_counterpart_is_said(settings, loss, reason):
    result = migrate_stage("dpo", {**BASE, **settings})
    assert result.config["model.loss_type"] == loss
    assert any(reason in each for each in result.refused.values())


def test_the_command_writes_it(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({**BASE, "beta": 0.5}))
    assert main([str(tmp_path / "old.yaml"), "--trainer", "dpo", "--output", str(tmp_path / "new.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "new.yaml").read_text())["model"]["beta"] == 0.5
    assert "model.rewards" not in capsys.readouterr().err
