"""Every setting that is worked out, in its usual forms: what our parser finds under our names."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import Namespace
from parsed_config import BASE, FIELDS, written

from grpo_lightning.migration import COMPOSED, migrate

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

LR = "model.optimizer.init_args.lr"
VLLM = {"use_vllm": True}
PEFT = {"use_peft": True}
SERVER = VLLM | {"vllm_mode": "server"}
ENGINE = "model.generator.init_args"
COLOCATE = "grpo_lightning.generation.VLLMColocate"
SCHEDULER = "model.lr_scheduler.init_args"
EVAL = {"eval_strategy": "steps", "eval_steps": 100}
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
        ({}, {f"{SCHEDULER}.name": "linear", f"{SCHEDULER}.total_steps": 100}),
        ({"lr_scheduler_type": "cosine"}, {f"{SCHEDULER}.name": "cosine"}),
        ({"lr_scheduler_type": "constant"}, {"model.lr_scheduler": None}),
    ],
    "lr_scheduler_kwargs": [
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            {f"{SCHEDULER}.arguments": {"min_lr_rate": 0.1}},
        )
    ],
    "warmup_steps": [
        ({"warmup_steps": 7}, {f"{SCHEDULER}.warmup_steps": 7}),
        ({"warmup_steps": 0.05}, {f"{SCHEDULER}.warmup_steps": 0.05, f"{SCHEDULER}.total_steps": 100}),
        ({"warmup_steps": 3, "lr_scheduler_type": "constant_with_warmup"}, {f"{SCHEDULER}.total_steps": None}),
    ],
    "max_steps": [({"max_steps": 70}, {"trainer.max_steps": 70})],
    "num_train_epochs": [({"max_steps": -1, "num_train_epochs": 2}, {"trainer.max_epochs": 2})],
    "bf16": [({"bf16": False}, {"trainer.precision": "32-true"}), ({}, {"trainer.precision": "bf16-mixed"})],
    "fp16": [({"fp16": False}, {"trainer.precision": "bf16-mixed"})],
    "use_cpu": [({"use_cpu": True}, {"trainer.accelerator": "cpu"})],
    "logging_steps": [
        ({"logging_steps": 5}, {"trainer.log_every_n_steps": 5}),
        ({"logging_steps": 0.05}, {"trainer.log_every_n_steps": 5}),
        ({"logging_steps": 5, "num_iterations": 2}, {"trainer.log_every_n_steps": 2}),
    ],
    "logging_strategy": [({"logging_strategy": "steps"}, {"trainer.log_every_n_steps": 10})],
    "report_to": [
        ({"report_to": ["tensorboard"]}, {"trainer.logger.0": "lightning.pytorch.loggers.TensorBoardLogger"})
    ],
    "run_name": [({"report_to": "tensorboard", "run_name": "one"}, {"trainer.logger.0.name": "one"})],
    "project": [({"report_to": "wandb", "project": "p"}, {"trainer.logger.0.project": "p"})],
    "trackio_space_id": [({"report_to": "trackio", "trackio_space_id": "s"}, {"trainer.logger.0.space_id": "s"})],
    "trackio_bucket_id": [
        (
            {"report_to": "trackio", "trackio_bucket_id": "b"},
            {"trainer.logger.0": "grpo_lightning.trackers.TrackioLogger"},
        )
    ],
    "save_strategy": [({"save_strategy": "epoch"}, {"checkpoint.every_n_epochs": 1})],
    "save_steps": [
        ({"save_steps": 20}, {"checkpoint.every_n_train_steps": 20}),
        ({"save_steps": 0.05}, {"checkpoint.every_n_train_steps": 5}),
        # Lightning looks at multiples of the interval after GRPO steps only: 4, 8, 12, ...
        ({"save_steps": 6, "num_iterations": 4}, {"checkpoint.every_n_train_steps": 8}),
    ],
    "save_total_limit": [
        ({"save_total_limit": 3}, {"checkpoint.save_top_k": 3, "checkpoint.monitor": "step", "checkpoint.mode": "max"}),
        ({"save_total_limit": None}, {"checkpoint.save_top_k": -1}),
    ],
    "eval_strategy": [
        ({"eval_strategy": "epoch"}, {"trainer.check_val_every_n_epoch": 1}),
        ({"eval_strategy": "no"}, {"trainer.limit_val_batches": 0}),
    ],
    "eval_steps": [
        (EVAL | {"eval_steps": 25}, {"trainer.val_check_interval": 25}),
        (EVAL | {"eval_steps": 24, "num_iterations": 4}, {"trainer.val_check_interval": 6}),
        (EVAL | {"eval_steps": 0.1}, {"trainer.val_check_interval": 10}),
        (EVAL | {"eval_steps": 0.1, "max_steps": -1, "num_train_epochs": 5}, {"trainer.val_check_interval": 0.5}),
    ],
    "num_generations_eval": [
        (EVAL | {"num_generations_eval": 4}, {"model.num_generations_eval": 4}),
        (
            EVAL | {"num_generations": 16, "temperature": 0.7, "top_p": 0.9},
            {"model.num_generations_eval": 16, "model.temperature_eval": 0.7, "model.top_p_eval": 0.9},
        ),
        ({}, {"model.num_generations_eval": 0}),
    ],
    "gradient_checkpointing": [
        ({"gradient_checkpointing": False}, {"model.gradient_checkpointing": False}),
        ({}, {"model.gradient_checkpointing": True}),
    ],
    "chat_template_kwargs": [
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"model.chat_template_kwargs": {"enable_thinking": False}},
        )
    ],
    "top_k": [
        ({"top_k": 20}, {"model.top_k": 20}),
        ({"top_k": None}, {"model.top_k": 0}),
        ({"top_k": -1}, {"model.top_k": 0}),
    ],
    "datasets": [
        (
            {"datasets": [{"path": "a/b", "name": "main", "split": "test"}]},
            {"data.dataset": {"hf_hub_url": "a/b", "subset": "main", "split": "test"}},
        ),
        (
            {"datasets": [{"path": "json", "data_files": "rows.jsonl"}]},
            {"data.dataset": {"file_name": "rows.jsonl", "split": "train"}},
        ),
    ],
    "streaming": [
        ({"dataset_name": "a/b", "streaming": True}, {"data.streaming": True}),
        ({"dataset_name": "a/b", "streaming": False}, {"data.streaming": False}),
    ],
    "dataset_streaming": [({"dataset_name": "a/b", "dataset_streaming": True}, {"data.streaming": True})],
    "vllm_server_base_url": [
        (
            {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://gpu2:8100"},
            {f"{ENGINE}.host": "gpu2", f"{ENGINE}.port": 8100},
        )
    ],
    "vllm_importance_sampling_correction": [
        ({"vllm_importance_sampling_correction": False}, {"model.importance_sampling_correction": False})
    ],
    "vllm_importance_sampling_mode": [
        ({"vllm_importance_sampling_mode": "token_mask"}, {"model.importance_sampling_mode": "token_mask"})
    ],
    "vllm_importance_sampling_clip_max": [
        ({"vllm_importance_sampling_clip_max": 1.5}, {"model.importance_sampling_max": 1.5})
    ],
    "vllm_importance_sampling_clip_min": [
        ({"vllm_importance_sampling_clip_min": 0.5}, {"model.importance_sampling_min": 0.5})
    ],
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
    "dtype": [
        ({"dtype": "bfloat16"}, {"model.dtype": "bfloat16", "model.allow_rounded_steps": True}),
        (PEFT | {"dtype": "bfloat16"}, {"model.dtype": "bfloat16", "model.allow_rounded_steps": False}),
    ],
    "generation_kwargs": [
        ({"generation_kwargs": {"stop": "###", "top_k": 5}}, {"model.stop": ["###"], "model.top_k": 5})
    ],
    "reward_funcs": [
        (
            {"reward_funcs": ["think_format_reward", "runs.share_of_digits"]},
            {
                "model.rewards.0.class_path": "grpo_lightning.rewards.FormatReward",
                "model.rewards.1": "runs.share_of_digits",
            },
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
        (PEFT, {"model.lora_target": "peft"}),
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
    "max_tool_calling_iterations": [
        ({"tools": ["math.sqrt"], "max_tool_calling_iterations": 3}, {"model.turns.max_turns": 4})
    ],
    "vllm_importance_sampling_cap": [({"vllm_importance_sampling_cap": 2.0}, {"model.importance_sampling_max": 2.0})],
}
"""Composed field -> [(their settings beside BASE, ours)]."""


def test_every_composed_field_has_a_case():
    assert COMPOSED_CASES.keys() == COMPOSED.keys() & FIELDS.keys()


def lookup(config: Namespace, key: str) -> Any:
    if key.startswith("model.rewards."):
        index, _, name = key.removeprefix("model.rewards.").partition(".")
        return config.model.rewards[int(index)][name] if name else config.model.rewards[int(index)]
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
