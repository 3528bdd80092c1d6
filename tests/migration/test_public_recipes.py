"""Configs in the manners of what people publish: each parses as published, and trains two steps on a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from parsed_config import written
from recorded_runs import run_migrated, write_config

from grpo_lightning.migration import migrate

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

# As YAML, because a published 5e-7 is text to a YAML parser.
RECIPES = {
    "open-r1, demo": """
        {model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct, model_revision: main, torch_dtype: bfloat16,
        attn_implementation: flash_attention_2, dataset_name: open-r1/OpenR1-Math-220k, dataset_prompt_column: problem,
        system_prompt: "Think.\\n<think>\\n...\\n</think>", bf16: true, use_vllm: true, do_eval: false,
        gradient_accumulation_steps: 4, gradient_checkpointing: true, gradient_checkpointing_kwargs: {use_reentrant: false},
        hub_model_id: x, hub_strategy: every_save, learning_rate: 2.0e-05, log_completions: true, log_level: info,
        logging_first_step: true, logging_steps: 1, logging_strategy: steps, lr_scheduler_type: cosine,
        max_prompt_length: 512, max_completion_length: 1024, max_steps: -1, num_generations: 16, num_train_epochs: 1,
        overwrite_output_dir: true, per_device_eval_batch_size: 16, per_device_train_batch_size: 16, push_to_hub: true,
        report_to: [wandb], reward_funcs: [accuracy, format, tag_count], reward_weights: [1.0, 1.0, 1.0],
        save_strategy: epoch, save_total_limit: 1, seed: 42, warmup_ratio: 0.1}""",
    "open-r1, code": """
        {model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct, torch_dtype: bfloat16, dataset_name: open-r1/verifiable-coding-problems-python,
        dataset_prompt_column: problem_statement, system_prompt: Think., bf16: true, use_vllm: true, beta: 0.01,
        callbacks: [push_to_hub_revision], benchmarks: [lcb_v4], gradient_accumulation_steps: 4, code_language: python,
        lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: 0.1}, max_steps: 500, num_generations: 14,
        per_device_train_batch_size: 16, reward_funcs: [code, format], reward_weights: [1.0, 0.1], save_strategy: steps,
        save_steps: 50, temperature: 1.0, wandb_entity: e, wandb_project: p, warmup_ratio: 0.1, learning_rate: 5.0e-06}""",
    "a blog's countdown": """
        {model_name_or_path: Qwen/Qwen2.5-3B-Instruct, model_revision: main, torch_dtype: bfloat16, bf16: true, tf32: true,
        attn_implementation: flash_attention_2, output_dir: runs/x, dataset_id_or_path: Jiayi-Pan/Countdown-Tasks-3to4, dataset_splits: train,
        tokenizer_name_or_path: Qwen/Qwen2.5-3B-Instruct,
        max_steps: 450, per_device_train_batch_size: 8, gradient_accumulation_steps: 8, gradient_checkpointing: true,
        gradient_checkpointing_kwargs: {use_reentrant: false}, learning_rate: 5e-7, lr_scheduler_type: cosine,
        warmup_ratio: 0.03, beta: 0.001, max_prompt_length: 256, max_completion_length: 1024, num_generations: 8,
        use_vllm: true, vllm_device: "cuda:3", vllm_gpu_memory_utilization: 0.5, logging_strategy: steps, logging_steps: 2,
        report_to: [tensorboard], save_strategy: steps, save_steps: 25, seed: 42, push_to_hub: true, hub_strategy: every_save}""",
    "a gist on GSM8K": """
        {model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct, output_dir: out, run_name: r, learning_rate: 5e-6, adam_beta1: 0.9,
        adam_beta2: 0.99, weight_decay: 0.1, warmup_ratio: 0.1, lr_scheduler_type: cosine, logging_steps: 1, bf16: true,
        per_device_train_batch_size: 1, gradient_accumulation_steps: 4, num_generations: 4, max_prompt_length: 256,
        max_completion_length: 786, num_train_epochs: 1, save_steps: 100, max_grad_norm: 0.1, report_to: wandb,
        log_on_each_node: false}""",
    "the cookbook, adapters": """
        {model_name_or_path: Qwen/Qwen2-0.5B-Instruct, output_dir: out, learning_rate: 1e-5, remove_unused_columns: false,
        gradient_accumulation_steps: 16, num_train_epochs: 1, bf16: true, max_completion_length: 64, num_generations: 4,
        max_prompt_length: 128, report_to: [tensorboard], logging_steps: 10, push_to_hub: true, save_strategy: steps,
        save_steps: 10, use_peft: true, lora_r: 8, lora_alpha: 32, lora_dropout: 0.1, lora_task_type: CAUSAL_LM,
        lora_target_modules: [q_proj, v_proj]}""",
    "a notebook of Unsloth": """
        {model_name: unsloth/Qwen3-4B-Base, max_seq_length: 2048, load_in_4bit: false, fast_inference: true, max_lora_rank: 32,
        gpu_memory_utilization: 0.9, r: 32, target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj],
        lora_alpha: 64, use_gradient_checkpointing: unsloth, random_state: 3407, temperature: 1.0, learning_rate: 5e-6,
        weight_decay: 0.001, warmup_ratio: 0.1, lr_scheduler_type: linear, optim: adamw_8bit, logging_steps: 1,
        per_device_train_batch_size: 4, gradient_accumulation_steps: 1, num_generations: 4, max_completion_length: 1800,
        max_steps: 100, save_steps: 100, report_to: none, output_dir: outputs}""",
    "DAPO": """
        {model_name_or_path: Qwen/Qwen3-0.6B, loss_type: dapo, epsilon: 0.2, epsilon_high: 0.28, beta: 0.0, num_iterations: 2,
        mask_truncated_completions: true, scale_rewards: group, temperature: 1.0, top_p: 0.95, top_k: 20, min_p: 0.0,
        per_device_train_batch_size: 8, num_generations: 4, max_steps: 20, learning_rate: 1e-6, dataloader_num_workers: 4,
        ddp_timeout: 18000, eval_strategy: "no", save_strategy: steps, save_steps: 0.1, warmup_steps: 10,
        lr_scheduler_type: constant_with_warmup, disable_dropout: true}""",
    "Dr. GRPO": """
        {model_name_or_path: Qwen/Qwen2.5-Math-1.5B, loss_type: dr_grpo, scale_rewards: false, beta: 0.0, num_generations: 8,
        per_device_train_batch_size: 8, gradient_accumulation_steps: 2, max_completion_length: 3000, max_steps: 20,
        learning_rate: 1e-6, lr_scheduler_type: constant, temperature: 1.0, seed: 1, full_determinism: false}""",
    "GSPO": """
        {model_name_or_path: Qwen/Qwen3-0.6B, importance_sampling_level: sequence, loss_type: grpo, beta: 0.0, epsilon: 3e-4,
        epsilon_high: 4e-4, per_device_train_batch_size: 4, gradient_accumulation_steps: 1, steps_per_generation: 4,
        num_generations: 4, max_steps: 40, learning_rate: 1e-6, vllm_importance_sampling_correction: true}""",
    "TRL's example on DeepMath": """
        {model_name_or_path: Qwen/Qwen3-0.6B, dtype: bfloat16, dataset_name: trl-lib/DeepMath-103K, learning_rate: 1e-5,
        gradient_checkpointing: true, per_device_train_batch_size: 8, num_generations: 8, use_vllm: true,
        vllm_mode: colocate, max_completion_length: 4096, log_completions: true, lr_scheduler_type: cosine, max_steps: 100,
        eval_strategy: steps, eval_steps: 50, per_device_eval_batch_size: 8, use_peft: true, lora_target_modules: all-linear,
        trust_remote_code: false, reward_funcs: [accuracy_reward]}""",
    "accelerate with a recipe": """
        {num_processes: 8, num_machines: 1, mixed_precision: bf16, main_process_port: 29500, use_deepspeed: true,
        model_name_or_path: Qwen/Qwen2.5-7B, dataset_name: AI-MO/NuminaMath-TIR, dataset_prompt_column: problem, use_vllm: true,
        vllm_mode: server, vllm_server_host: 10.0.0.1, vllm_server_port: 8000, vllm_server_timeout: 600.0,
        per_device_train_batch_size: 4, gradient_accumulation_steps: 2, num_generations: 8, max_steps: 100, sync_ref_model: true,
        ref_model_mixup_alpha: 0.6, ref_model_sync_steps: 64, beta: 0.04, learning_rate: 3.0e-06, optim: adamw_torch_fused}""",
    "open-r1, a small model and a remote sampler": """
        {model_name_or_path: HuggingFaceTB/SmolLM2-1.7B-Instruct, torch_dtype: bfloat16, dataset_name: open-r1/OpenR1-Math-cn_k12-86k,
        dataset_configs: [all], dataset_train_split: train, num_processes: 8, ddp_find_unused_parameters: false, use_vllm: true,
        vllm_device: auto, do_eval: false, gradient_accumulation_steps: 16, learning_rate: 1.0e-04, max_completion_length: 7172,
        num_generations: 8, num_iterations: 4, beta: 0.01, remote_gen_model_url: 10.0.0.1, reward_weights: [1.0],
        use_liger_kernel: true, warmup_ratio: 0.02, save_strategy: steps, save_steps: 10, num_train_epochs: 1.0, max_steps: -1,
        per_device_train_batch_size: 8}""",
    "open-r1, competition code": """
        {model_name_or_path: Qwen/Qwen2.5-7B-Instruct, dataset_name: open-r1/codeforces-verifiable, dataset_prompt_column: prompt_c++17,
        loss_type: dr_grpo, scale_rewards: false, use_vllm: true, save_strategy: steps, save_steps: 0.05, num_train_epochs: 40,
        max_steps: -1, temperature: 0.7, mask_truncated_completions: true, code_language: cpp, code_eval_test_batch_size: 20,
        learning_rate: 1.0e-06, lr_scheduler_type: constant_with_warmup, warmup_ratio: 0.1, max_grad_norm: 0.2,
        num_generations: 8, per_device_train_batch_size: 8, gradient_accumulation_steps: 16}""",
    "open-r1, a batch of generation": """
        {model_name_or_path: open-r1/merged, dataset_name: open-r1/filtered, dataset_config: default, generation_batch_size: 16,
        num_generations: 4, per_device_train_batch_size: 4, gradient_accumulation_steps: 4, max_completion_len: 32768,
        soft_punish_cache: 4196, use_liger_loss: false, use_liger_kernel: true, sync_ref_model: false, save_steps: 0.1,
        learning_rate: 1.0e-06, num_train_epochs: 1, max_steps: -1, use_vllm: true, hub_model_revision: v09.00}""",
    "a small open-r1 of another lab": """
        {model_name_or_path: a/doge, dataset_name: AI-MO/NuminaMath-TIR, dataset_configs: [all], num_processes: 8, bf16: null,
        use_vllm: true, do_eval: true, evaluation_strategy: steps, eval_steps: 100, gradient_accumulation_steps: 16,
        learning_rate: 8.0e-05, max_steps: -1, num_train_epochs: 1, per_device_eval_batch_size: 4, num_generations: 4,
        per_device_train_batch_size: 4, save_strategy: "no", vllm_gpu_memory_utilization: 0.7}""",
    "NeMo Gym with TRL": """
        {model_name: Qwen/Qwen2.5-1.5B-Instruct, dataset_path: train.jsonl, eval_dataset_path: val.jsonl, task: mini-sudoku,
        learning_rate: 1.0e-5, num_generations: 8, per_device_train_batch_size: 8, gradient_accumulation_steps: 1,
        max_completion_length: 10000, vllm_importance_sampling_correction: true, temperature: 1.0, top_p: 0.999}""",
}
PARSED_ONLY = {
    "R1-V, images": """
        {model_name_or_path: Qwen/Qwen2.5-VL-3B-Instruct, dataset_name: lmms-lab/multimodal-open-r1-8k-verified, bf16: true,
        max_pixels: 401408, min_pixels: 3136, freeze_vision_tower: true, per_device_train_batch_size: 2, num_generations: 2,
        max_prompt_length: 2048, learning_rate: 1e-5, num_train_epochs: 1, remove_unused_columns: false, save_only_model: true}""",
    "open-r1, a mixture": """
        {model_name_or_path: Qwen/Qwen3-4B, dataset_mixture: {datasets: [{id: a/b, config: default, split: train,
        columns: [problem], weight: 0.5}, {id: c/d, split: train, columns: [problem], weight: 0.5}], seed: 0},
        max_completion_len: 4096, soft_punish_cache: 512, repetition_n_grams: 3, repetition_max_penalty: -1.0,
        eos_token: "<|im_end|>", num_generations: 8, per_device_train_batch_size: 8, learning_rate: 1e-6, max_steps: 100}""",
    "Unsloth, vision and GSPO": """
        {model_name: unsloth/Qwen2.5-VL-7B-Instruct-bnb-4bit, load_in_4bit: true, fast_inference: false, offload_embedding: true,
        unsloth_vllm_standby: true, finetune_vision_layers: false, finetune_language_layers: true,
        finetune_attention_modules: true, finetune_mlp_modules: true, r: 16, lora_alpha: 16, lora_dropout: 0, bias: none,
        use_rslora: false, loftq_config: null, use_gradient_checkpointing: unsloth, learning_rate: 5e-6, num_generations: 2,
        per_device_train_batch_size: 1, gradient_accumulation_steps: 2, num_train_epochs: 0.5, max_grad_norm: 0.1,
        importance_sampling_level: sequence, mask_truncated_completions: false, loss_type: dr_grpo, optim: adamw_8bit}""",
    "verifiers, an older one": """
        {model_name_or_path: Qwen/Qwen2.5-7B-Instruct, num_iterations: 2, beta: 0.002, num_generations: 16, max_steps: 500,
        per_device_train_batch_size: 8, gradient_accumulation_steps: 2, use_vllm: true, vllm_server_port: 8000,
        async_generation_timeout: 600.0, max_concurrent: 128, mask_env_response: true, max_seq_len: 2048,
        learning_rate: 1e-6, lr_scheduler_type: constant_with_warmup, warmup_steps: 10, log_on_each_node: false}""",
    "a mixture of experts": """
        {model_name_or_path: Qwen/Qwen3-30B-A3B, dtype: bfloat16, use_peft: true, lora_r: 8, lora_target_modules: all-linear,
        lora_target_parameters: [mlp.experts.gate_up_proj], use_dora: true, use_rslora: true, epsilon: 3e-4, epsilon_high: 4e-4,
        importance_sampling_level: sequence, steps_per_generation: 4, per_device_train_batch_size: 4, num_generations: 4,
        max_steps: 20, learning_rate: 1e-6, fsdp: full_shard auto_wrap, replay_buffer_size: 64,
        fsdp_config: {transformer_layer_cls_to_wrap: Qwen3MoeDecoderLayer, activation_checkpointing: true}}""",
}
"""For models or data that a toy does not have."""
REWARD = {"reward_funcs": ["accuracy_reward"]}
# What a toy on a CPU has instead.
TOY = dict.fromkeys(
    [
        "model_name",
        "model_revision",
        "attn_implementation",
        "torch_dtype",
        "dtype",
        "dataset_id_or_path",
        "dataset_splits",
        "tokenizer_name_or_path",
        "dataset_prompt_column",
        "system_prompt",
        "use_vllm",
        "vllm_mode",
        "vllm_device",
        "vllm_gpu_memory_utilization",
        "vllm_server_host",
        "vllm_server_port",
        "vllm_server_timeout",
        "vllm_importance_sampling_correction",
        "fast_inference",
        "gpu_memory_utilization",
        "max_prompt_length",
        "max_seq_length",
        "load_in_4bit",
        "reward_weights",
        "num_processes",
        "mixed_precision",
        "use_deepspeed",
        "use_gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "callbacks",
        "benchmarks",
        "max_lora_rank",
        "tf32",
        "num_train_epochs",
        "save_steps",
        "eval_steps",
        "logging_strategy",
        "hub_model_id",
        "hub_strategy",
        "wandb_entity",
        "wandb_project",
        "num_machines",
        "remote_gen_model_url",
        "dataset_path",
        "eval_dataset_path",
        "task",
        "evaluation_strategy",
        "dataset_configs",
        "dataset_config",
        "dataset_train_split",
        "use_liger_kernel",
        "use_liger_loss",
        "main_process_port",
        "eval_strategy",
    ]
) | {"push_to_hub": False, "report_to": "none", "optim": "adamw_torch"}


@pytest.mark.parametrize("name", RECIPES | PARSED_ONLY)
def test_a_recipe_parses_as_it_was_published_with_an_answer_to_every_key(name: str, tmp_path: Path) -> None:
    recipe: dict[str, Any] = REWARD | yaml.safe_load((RECIPES | PARSED_ONLY)[name])
    result = migrate(recipe)
    assert recipe.keys() <= result.mapped.keys() | result.refused.keys()
    assert not [key for key, reason in result.refused.items() if "Unknown" in reason]
    config = written(recipe, tmp_path)
    rate = config.model.optimizer.lr if "lr" in config.model.optimizer else config.model.optimizer.init_args.lr
    assert rate == float(recipe["learning_rate"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_two_steps_on_a_toy(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(RECIPES[name]) | TOY
    for key in ("model_name_or_path", "dataset_name", "reward_funcs", "output_dir", "bf16", "gradient_checkpointing"):
        recipe.pop(key, None)
    each = recipe["num_generations"]  # completions of a prompt
    recipe |= {"max_steps": 2, "max_completion_length": 4, "per_device_eval_batch_size": each}
    recipe["gradient_accumulation_steps"] = min(
        8, recipe.get("gradient_accumulation_steps", 1)
    )  # the toy has 12 prompts
    ours = run_migrated(write_config(tmp_path, tiny_model_dir, recipe))
    updates = max(recipe.get("steps_per_generation", 2), recipe.get("num_iterations", 1))
    assert len(ours.learning_rates) == updates  # a generation is never cut
    assert 0 < ours.longest <= 4
    assert {count for of_step in ours.prompts.values() for count in of_step.values()} == {each}
