from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace
from trl import GRPOConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

from grpo_lightning.commands.cli import GRPOCLI
from grpo_lightning.commands.migrate import main
from grpo_lightning.migration import COMPOSED, REFUSED, SAME, migrate, read_source
from grpo_lightning.migration.table import IMPLIED

FIELDS = {f.name: f for owner in (GRPOConfig, ModelConfig, GRPOScriptArguments) for f in dataclasses.fields(owner)}
BASE = {"model_name_or_path": "some/model", "reward_funcs": ["accuracy"], "max_steps": 100}

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


class Parsed(GRPOCLI):
    """Parses and stops: instantiating would read the model."""

    def instantiate_classes(self) -> None:
        pass


def parse(config: Path) -> Namespace:
    return Parsed(args=["--config", str(config)], run=False).config


@pytest.fixture(scope="module")
def our_defaults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("defaults") / "config.yaml"
    path.write_text("model: {model_name_or_path: some/model, rewards: accuracy}\n")
    return {key: value for key, value in vars(parse(path).clone(with_meta=False).as_flat()).items()}


def trl_default(name: str) -> Any:
    found = FIELDS[name]
    return found.default_factory() if found.default_factory is not dataclasses.MISSING else found.default


def written(settings: dict[str, Any], tmp_path: Path, **options: Any) -> Namespace:
    """What our parser makes of the migrated settings."""
    path = tmp_path / "new.yaml"
    result = migrate(settings, **options)
    result.config.pop("ckpt_path", None)  # known to `fit` only, not to a parser without a subcommand
    path.write_text(result.to_yaml("old.yaml"))
    return parse(path)


def test_every_field_of_trl_stands_in_exactly_one_table():
    tables = [set(SAME), set(COMPOSED), set(REFUSED)]
    assert FIELDS.keys() - set().union(*tables) == set()
    assert len(set().union(*tables)) == sum(map(len, tables))


SAMPLES: dict[str, Any] = {
    "loss_type": "grpo",
    "importance_sampling_level": "sequence",
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "batch",
    "vllm_importance_sampling_mode": "token_mask",
    "chat_template_kwargs": {"enable_thinking": False},
    "model_name_or_path": "other/model",
    "output_dir": "runs/elsewhere",
    "attn_implementation": "eager",
    "epsilon_high": 0.28,
    "delta": 1.5,
    "off_policy_mask_threshold": 0.5,
    "beta": 0.04,
    "entropy_coef": 0.01,
    "entropy_coef_min": 0.001,
    "vllm_importance_sampling_clip_min": 0.5,
    "num_generations_eval": 4,
}


def another_value(name: str) -> Any:
    """A valid value of a field that is not its default."""
    default = trl_default(name)
    if name in SAMPLES:
        return SAMPLES[name]
    return not default if isinstance(default, bool) else default + 1 if isinstance(default, int) else default / 2


@pytest.mark.parametrize("name", sorted(SAME.keys() & FIELDS.keys()))
def test_a_field_with_the_same_meaning_keeps_its_value(name, tmp_path):
    value = another_value(name)
    assert value != trl_default(name)
    config = written(BASE | {name: value}, tmp_path)
    found = config[SAME[name]]
    assert (found.as_dict() if isinstance(found, Namespace) else found) == value


@pytest.mark.parametrize("name", sorted(SAME.keys() & FIELDS.keys()))
def test_a_field_that_is_left_out_has_trls_default(name, our_defaults):
    default = {"seed": 0, "output_dir": "runs/grpo"}.get(name, trl_default(name))  # run identity, not mathematics
    assert default in (IMPLIED.get(name, our_defaults[SAME[name]]), None, dataclasses.MISSING) or (
        our_defaults[SAME[name]] in (None, 0) and default in (None, False)
    )


LR = "model.optimizer.init_args.lr"
VLLM = {"use_vllm": True}
PEFT = {"use_peft": True}
SERVER = VLLM | {"vllm_mode": "server"}
ENGINE = "model.generator.init_args"
COLOCATE = "grpo_lightning.generation.VLLMColocate"
SCHEDULER = "model.lr_scheduler.init_args"
HUB = {"dataset_name": "openai/gsm8k", "eval_strategy": "steps", "eval_steps": 5}

COMPOSED_CASES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "per_device_train_batch_size": [({"per_device_train_batch_size": 64}, {"data.batch_size": 8})],
    "gradient_accumulation_steps": [
        ({"gradient_accumulation_steps": 4}, {"data.batch_size": 4, "model.num_minibatches": 1})
    ],
    "steps_per_generation": [
        (
            {"steps_per_generation": 8, "gradient_accumulation_steps": 2},
            {"data.batch_size": 8, "model.num_minibatches": 4},
        ),
        # Two generations of the same policy make one optimizer step: one step of 4 prompts.
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 4}, {"data.batch_size": 4}),
    ],
    "generation_batch_size": [({"generation_batch_size": 64}, {"data.batch_size": 8, "model.num_minibatches": 8})],
    "per_device_eval_batch_size": [({"per_device_eval_batch_size": 32}, {"data.eval_batch_size": 4})],
    "min_p": [({"min_p": 0.1}, {"model.min_p": 0.1}), ({"min_p": None}, {"model.min_p": 0.0})],
    "learning_rate": [({"learning_rate": 3e-6}, {LR: 3e-6})],
    "optim": [
        ({"optim": "sgd"}, {"model.optimizer.class_path": "torch.optim.SGD"}),
        ({"optim": "adamw_torch"}, {"model.optimizer.class_path": "torch.optim.AdamW"}),
    ],
    "weight_decay": [({"weight_decay": 0.1}, {"model.optimizer.init_args.weight_decay": 0.1})],
    "adam_beta1": [({"adam_beta1": 0.8}, {"model.optimizer.init_args.betas": [0.8, 0.999]})],
    "adam_beta2": [({"adam_beta2": 0.95}, {"model.optimizer.init_args.betas": [0.9, 0.95]})],
    "adam_epsilon": [({"adam_epsilon": 1e-6}, {"model.optimizer.init_args.eps": 1e-6})],
    "lr_scheduler_type": [
        ({}, {f"{SCHEDULER}.shape": "linear", f"{SCHEDULER}.total_steps": 100}),
        ({"lr_scheduler_type": "cosine"}, {f"{SCHEDULER}.shape": "cosine"}),
        ({"lr_scheduler_type": "constant"}, {"model.lr_scheduler": None}),
    ],
    "lr_scheduler_kwargs": [
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            {f"{SCHEDULER}.min_ratio": 0.1},
        )
    ],
    "warmup_steps": [
        ({"warmup_steps": 7}, {f"{SCHEDULER}.warmup_steps": 7}),
        ({"warmup_steps": 0.05}, {f"{SCHEDULER}.warmup_steps": 5}),
        ({"warmup_steps": 3, "lr_scheduler_type": "constant_with_warmup"}, {f"{SCHEDULER}.shape": "constant"}),
    ],
    "max_steps": [({"max_steps": 70}, {"trainer.max_steps": 70})],
    "num_train_epochs": [({"max_steps": -1, "num_train_epochs": 2}, {"trainer.max_epochs": 2})],
    "bf16": [({"bf16": False}, {"trainer.precision": "32-true"}), ({}, {"trainer.precision": "bf16-mixed"})],
    "fp16": [({"fp16": False}, {"trainer.precision": "bf16-mixed"})],
    "use_cpu": [({"use_cpu": True}, {"trainer.accelerator": "cpu"})],
    "logging_steps": [({"logging_steps": 5}, {"trainer.log_every_n_steps": 5})],
    "logging_strategy": [({"logging_strategy": "steps"}, {"trainer.log_every_n_steps": 10})],
    "report_to": [
        ({"report_to": ["tensorboard"]}, {"trainer.logger.0": "lightning.pytorch.loggers.TensorBoardLogger"})
    ],
    "run_name": [({"report_to": "tensorboard", "run_name": "one"}, {"trainer.logger.0.name": "one"})],
    "project": [({"report_to": "wandb", "project": "p"}, {"trainer.logger.0.project": "p"})],
    "save_strategy": [({"save_strategy": "epoch"}, {"checkpoint.every_n_epochs": 1})],
    "save_steps": [({"save_steps": 20}, {"checkpoint.every_n_train_steps": 20})],
    "save_total_limit": [
        ({"save_total_limit": 3}, {"checkpoint.save_top_k": 3, "checkpoint.monitor": "step", "checkpoint.mode": "max"}),
        ({"save_total_limit": None}, {"checkpoint.save_top_k": -1}),
    ],
    "eval_strategy": [
        ({"eval_strategy": "epoch"}, {"trainer.check_val_every_n_epoch": 1}),
        ({"eval_strategy": "no"}, {"trainer.limit_val_batches": 0}),
    ],
    "eval_steps": [({"eval_strategy": "steps", "eval_steps": 25}, {"trainer.val_check_interval": 25})],
    "resume_from_checkpoint": [({"resume_from_checkpoint": True}, {"ckpt_path": "last"})],
    "ddp_find_unused_parameters": [
        ({"ddp_find_unused_parameters": True}, {"trainer.strategy": "ddp_find_unused_parameters_true"})
    ],
    "fsdp": [({"fsdp": "full_shard"}, {"trainer.strategy": "fsdp2"})],
    "deepspeed": [({"deepspeed": "zero3.json"}, {"trainer.strategy": "fsdp2"})],
    "model_init_kwargs": [
        (
            {"model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "sdpa"}},
            {"model.dtype": "bfloat16", "model.attn_implementation": "sdpa"},
        )
    ],
    "dtype": [({"dtype": "bfloat16"}, {"model.dtype": "bfloat16"})],
    "generation_kwargs": [
        ({"generation_kwargs": {"stop": "###", "top_k": 5}}, {"model.stop": ["###"], "model.top_k": 5})
    ],
    "reward_funcs": [
        (
            {"reward_funcs": ["accuracy", "runs.share_of_digits"]},
            {"model.rewards": ["accuracy", "runs.share_of_digits"]},
        )
    ],
    "reward_weights": [({"reward_weights": [0.5]}, {"model.reward_weights": [0.5]})],
    "reward_model_name_or_path": [],
    "dataset_name": [(HUB, {"data.dataset": {"hf_hub_url": "openai/gsm8k", "split": "train"}})],
    "dataset_config": [
        (
            HUB | {"dataset_config": "main"},
            {"data.dataset": {"hf_hub_url": "openai/gsm8k", "subset": "main", "split": "train"}},
        )
    ],
    "dataset_train_split": [
        (HUB | {"dataset_train_split": "test"}, {"data.dataset": {"hf_hub_url": "openai/gsm8k", "split": "test"}})
    ],
    "dataset_test_split": [
        (HUB | {"dataset_test_split": "dev"}, {"data.eval_dataset": {"hf_hub_url": "openai/gsm8k", "split": "dev"}})
    ],
    "use_peft": [
        (PEFT, {"model.finetuning_type": "lora", "model.lora_rank": 16, "model.lora_alpha": 32}),
        ({"use_peft": False}, {"model.finetuning_type": "full"}),
    ],
    "lora_r": [(PEFT | {"lora_r": 4}, {"model.lora_rank": 4})],
    "lora_alpha": [(PEFT | {"lora_alpha": 4}, {"model.lora_alpha": 4})],
    "lora_dropout": [(PEFT | {"lora_dropout": 0.0}, {"model.lora_dropout": 0.0})],
    "lora_target_modules": [
        (PEFT | {"lora_target_modules": ["q_proj"]}, {"model.lora_target": ["q_proj"]}),
        (PEFT | {"lora_target_modules": "all-linear"}, {"model.lora_target": "all"}),
    ],
    "load_in_4bit": [(PEFT | {"load_in_4bit": True}, {"model.finetuning_type": "qlora"})],
    "bnb_4bit_quant_type": [
        (PEFT | {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, {"model.bnb_4bit_quant_type": "fp4"})
    ],
    "use_bnb_nested_quant": [
        (PEFT | {"load_in_4bit": True, "use_bnb_nested_quant": False}, {"model.bnb_4bit_use_double_quant": False})
    ],
    "use_vllm": [
        (VLLM, {"model.generator.class_path": COLOCATE}),
        ({"use_vllm": False}, {"model.generator.class_path": "grpo_lightning.generation.TransformersGenerator"}),
    ],
    "vllm_mode": [(VLLM | {"vllm_mode": "colocate"}, {"model.generator.class_path": COLOCATE})],
    "vllm_gpu_memory_utilization": [
        (VLLM | {"vllm_gpu_memory_utilization": 0.5}, {f"{ENGINE}.gpu_memory_utilization": 0.5})
    ],
    "vllm_max_model_length": [(VLLM | {"vllm_max_model_length": 900}, {f"{ENGINE}.max_model_length": 900})],
    "vllm_tensor_parallel_size": [(VLLM | {"vllm_tensor_parallel_size": 2}, {f"{ENGINE}.tensor_parallel_size": 2})],
    "vllm_enable_sleep_mode": [(VLLM | {"vllm_enable_sleep_mode": True}, {f"{ENGINE}.enable_sleep_mode": True})],
    "vllm_model_impl": [
        (VLLM | {"vllm_model_impl": "transformers"}, {f"{ENGINE}.engine_kwargs": {"model_impl": "transformers"}})
    ],
    "vllm_structured_outputs_regex": [
        ({"vllm_structured_outputs_regex": "a+b"}, {"model.structured_outputs": {"regex": "a+b"}})
    ],
    "vllm_server_host": [
        (SERVER | {"vllm_server_host": "gpu1"}, {f"{ENGINE}.host": "gpu1"}),
        (SERVER | {"vllm_server_host": "0.0.0.0"}, {f"{ENGINE}.host": "127.0.0.1"}),
    ],
    "vllm_server_port": [(SERVER | {"vllm_server_port": 9000}, {f"{ENGINE}.port": 9000})],
    "vllm_server_timeout": [(SERVER | {"vllm_server_timeout": 60.0}, {f"{ENGINE}.timeout": 60.0})],
    "vllm_importance_sampling_cap": [({"vllm_importance_sampling_cap": 2.0}, {"model.importance_sampling_max": 2.0})],
}
"""Composed field -> [(their settings beside BASE, ours)]."""


def test_every_composed_field_has_a_case():
    assert COMPOSED_CASES.keys() == COMPOSED.keys() & FIELDS.keys()


def lookup(config: Namespace, key: str) -> Any:
    if key.startswith("trainer.logger.0"):
        logger = config.trainer.logger[0]
        name = key.removeprefix("trainer.logger.0").removeprefix(".")
        return logger.init_args[name] if name else logger.class_path
    value = config.get(key)
    if isinstance(value, tuple):
        return list(value)
    return value.as_dict() if isinstance(value, Namespace) else value


CASES = [(name, theirs, ours) for name, cases in COMPOSED_CASES.items() for theirs, ours in cases]


@pytest.mark.parametrize(("name", "theirs", "ours"), CASES, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(CASES)])
def test_a_composed_field_arrives_where_the_table_says(name, theirs, ours, tmp_path):
    result = migrate(BASE | theirs)
    assert name not in theirs or name in result.mapped
    config = written(BASE | theirs, tmp_path)
    for key, value in ours.items():
        found = result.config[key] if key == "ckpt_path" else lookup(config, key)
        assert found == value


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & FIELDS.keys()))
def test_a_field_without_a_counterpart_is_listed_with_its_reason_in_the_file(name):
    result = migrate(BASE | {name: "some value"})
    assert result.refused[name] == REFUSED[name] and len(REFUSED[name]) > 10
    assert f"#   {name}: {REFUSED[name]}" in result.to_yaml("old.yaml")


def test_all_of_trls_defaults_at_once_lose_nothing_that_was_on(tmp_path):
    defaults = {name: trl_default(name) for name in FIELDS if trl_default(name) is not dataclasses.MISSING}
    defaults |= {"model_name_or_path": "some/model", "reward_funcs": ["accuracy"], "output_dir": "out"}
    result = migrate(defaults)
    assert result.given <= result.mapped.keys() | result.refused.keys()
    config = written(defaults, tmp_path)
    assert (config.data.batch_size, config.model.num_minibatches, config.trainer.max_epochs) == (1, 1, 3)
    assert config.model.max_completion_length == 512 and config.model.lora_rank == 8


def test_two_devices_share_trls_generation_batch():
    settings = BASE | {"generation_batch_size": 64, "per_device_train_batch_size": 16}
    result = migrate(settings, devices=2)
    assert (result.config["data.batch_size"], result.config["model.num_minibatches"]) == (4, 2)
    assert result.config["trainer.devices"] == 2


def test_a_group_that_spans_devices_in_trl_is_pointed_out():
    result = migrate(BASE | {"per_device_train_batch_size": 4, "num_generations": 16}, devices=4)
    assert result.config["data.batch_size"] == 1 and "0.25 prompts" in result.refused["per_device_train_batch_size"]


def test_a_decay_without_a_known_end_is_not_dropped_in_silence():
    endless = {key: value for key, value in BASE.items() if key != "max_steps"}
    result = migrate(endless)
    assert (
        "--total_steps" in result.refused["lr_scheduler_type"] and "model.lr_scheduler.class_path" not in result.config
    )
    assert migrate(endless, total_steps=40).config["model.lr_scheduler.init_args.total_steps"] == 40


ENDLESS = {key: value for key, value in BASE.items() if key != "max_steps"}


def test_the_warm_up_ratio_of_older_trl_becomes_steps():
    warmup = f"{SCHEDULER}.warmup_steps"
    known = migrate(BASE | {"warmup_ratio": 0.03, "max_steps": 150})
    assert known.config[warmup] == 5  # 4.5 steps, rounded up as there
    assert known.mapped["warmup_ratio"] == [warmup] and "warmup_ratio" not in known.refused
    constant = {"warmup_ratio": 0.1, "lr_scheduler_type": "constant_with_warmup"}
    assert migrate(ENDLESS | constant, total_steps=40).config[warmup] == 4
    assert "--total_steps" in migrate(ENDLESS | constant).refused["warmup_ratio"]
    assert "warmup_ratio" not in migrate(ENDLESS | {"warmup_ratio": 0.0}).lost()
    assert migrate(BASE | {"warmup_ratio": 1.0}).config[warmup] == 100


def test_warm_up_steps_win_over_the_ratio_as_in_trl():
    result = migrate(BASE | {"warmup_ratio": 0.1, "warmup_steps": 7})
    assert result.config[f"{SCHEDULER}.warmup_steps"] == 7
    assert result.refused["warmup_ratio"] == "warmup_steps decides, as in TRL."


def test_the_longest_prompt_of_older_trl_is_kept_and_what_happens_to_longer_ones_said(tmp_path):
    settings = BASE | {"max_prompt_length": 512}
    assert written(settings, tmp_path).data.max_prompt_length == 512
    assert "left out" in migrate(settings).refused["max_prompt_length"]
    assert "max_prompt_length" not in migrate(BASE | {"max_prompt_length": None}).lost()


def test_a_least_rate_is_refused_for_the_number_of_steps_that_is_missing():
    settings = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    reason = migrate(ENDLESS | settings).refused["lr_scheduler_kwargs"]
    assert "--total_steps" in reason and "knows min_ratio only" not in reason
    other = migrate(BASE | settings | {"lr_scheduler_kwargs": {"num_cycles": 2}})
    assert "knows min_ratio only" in other.refused["lr_scheduler_kwargs"]


@pytest.mark.parametrize("key", ["fsdp", "deepspeed"])
def test_sharding_is_written_with_the_engine_that_it_needs(key):
    assert "VLLMColocate" in migrate(BASE | {key: "some value"}).refused[key]
    assert "VLLMColocate" not in migrate(BASE | VLLM | {key: "some value"}).refused.get(key, "")


SEED = """
stage: grpo
model_name_or_path: "Qwen/Qwen2-0.5B-Instruct"
dataset: "gsm8k_train"
eval_dataset: "gsm8k_test"
converter: "grpo"
output_dir: "outputs/grpo"
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
num_train_epochs: 3
learning_rate: 1e-6
bf16: true
num_generations: 8
temperature: 1.0
beta: 0.001
loss_type: "dapo"
reward_funcs: "accuracy,format"
reward_weights: "1.0,0.5"
use_vllm: true
vllm_mode: "colocate"
vllm_gpu_memory_utilization: 0.3
finetuning_type: "lora"
lora_rank: 8
lora_alpha: 16
report_to: "wandb"
logging_steps: 10
save_strategy: "steps"
save_steps: 500
tags: []
"""


def test_the_seeds_flat_config_becomes_ours(tmp_path, capsys):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(SEED)
    assert main([str(old), "--output", str(new), "--total_steps", "90"]) == 0
    config = parse(new)
    assert config.model.rewards == ["accuracy", "format"] and config.model.reward_weights == [1.0, 0.5]
    assert config.model.max_completion_length == 256  # the seeds' default; TRL's is 512
    assert (config.model.finetuning_type, config.model.lora_rank, config.model.lora_alpha) == ("lora", 8, 16)
    assert config.model.generator.class_path == COLOCATE
    assert (config.data.dataset, config.data.eval_dataset, config.data.converter) == (
        "gsm8k_train",
        "gsm8k_test",
        "grpo",
    )
    assert config.data.batch_size == 2 and config.model.optimizer.init_args.lr == 1e-6
    assert config.model.lr_scheduler.init_args.total_steps == 90
    assert config.checkpoint.every_n_train_steps == 500
    assert "Without a counterpart, and off: tags." in capsys.readouterr().err


def test_trls_command_line_is_understood_and_wins_over_the_file(tmp_path, capsys):
    old = tmp_path / "old.yaml"
    old.write_text("beta: 0.1\nlearning_rate: 1e-5\n")
    args = ["--beta", "0.04", "--use_vllm", "--reward_funcs", "accuracy", "my.reward", "--bf16=false", "--no_use_peft"]
    settings = read_source(old, args)
    assert settings == {
        "beta": 0.04,
        "learning_rate": 1e-5,
        "use_vllm": True,
        "reward_funcs": ["accuracy", "my.reward"],
        "bf16": False,
        "use_peft": False,
    }
    assert main(["--model_name_or_path", "m", "--beta", "0.04"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["model"]["beta"] == 0.04
    assert "Still to be set, since the config does not say: model.rewards, data.dataset." in printed.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "not `key: value` lines"),
        ("model: {beta: 1}\n", "config of this package already"),
        (
            "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n",
            "is a config of `accelerate launch` (compute_environment, distributed_type, deepspeed_config)",
        ),
    ],
)
def test_a_file_that_is_no_flat_config_is_refused(text, message, tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(text)
    assert main([str(tmp_path / "old.yaml")]) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_key_is_named():
    reason = migrate(BASE | {"learning_rat": 1}).refused["learning_rat"]
    assert reason == "Unknown: no setting of TRL 1.16, nor of GRPOArguments. Check its spelling."
