"""Keys of recipes that people copy, beside TRL 1.16's own, that have no counterpart: older TRL, open-r1, Unsloth, launchers."""

from __future__ import annotations

from grpo_lightning.migration.axolotl import KEYS as AXOLOTL

HUB = "Nothing is uploaded while a run trains. `python -m grpo_lightning export RUN DIR --push-to-hub NAME` uploads."
_CODE = (
    "It belongs to open-r1's code rewards: code_execution runs programs in a sandbox on this machine (docs/rewards.md)."
)
_COSINE = "It belongs to open-r1's reward cosine. Write a LengthReward with shape: cosine, and its correct and wrong."
_LAUNCHER = "Lightning starts the processes: trainer.devices, trainer.num_nodes."
_UNSLOTH = "Unsloth's own patches are not used here."
_LAYERS = "Which layers get adapters is a pattern of names in model.lora_target."
_PIXELS = "How large images become is the processor's business: put it into the model's preprocessor_config.json."
_REMOVED = "transformers has it no more, and it has no effect on what is learnt."

OLDER: dict[str, str] = {
    "vllm_device": "model.generator: VLLMColocate shares the policy's device. For one of its own, start a server on it "
    "(python -m grpo_lightning serve) and write VLLMServer.",
    "remote_gen_model_url": "A server of open-r1's that samples: start ours (python -m grpo_lightning serve) and write model.generator: "
    "VLLMServer with its host and port.",
    "dataset_path": "A key of a script, which reads it in its own way: data.dataset takes a file, a pattern or a directory.",
    "eval_dataset_path": "A key of a script, which reads it in its own way: data.eval_dataset takes a file, a pattern or a directory.",
    "task": "A key of a script: the task is what data.dataset and model.rewards (or model.environment) say.",
    "vllm_dtype": "The engine's dtype follows the policy's: model.generator.init_args.dtype.",
    "vllm_enable_prefix_caching": "On where it saves work; model.generator.init_args.engine_kwargs.",
    "use_liger_loss": "The loss never holds all logits at once; there is no other to choose.",
    "wandb_log_unique_prompts": "Completions of every step are written as Parquet in any case.",
    "overwrite_output_dir": "A run in a folder with an earlier one is refused, so that none is lost: name another "
    "trainer.default_root_dir, or go on with ckpt_path: last.",
    "logging_dir": "Logs are under trainer.default_root_dir, in logs.",
    "save_safetensors": "The exported model is in safetensors; checkpoints are Lightning's.",
    "group_by_length": "Micro-batches are packed; prompts need no order by length.",
    "push_to_hub_token": HUB,
    "push_to_hub_model_id": HUB,
    "push_to_hub_organization": HUB,
    "include_inputs_for_metrics": "Evaluation logs mean rewards, accuracy and pass@k; it has no compute_metrics.",
    "include_tokens_per_second": "tokens_per_second is always logged.",
    "adafactor": "Name an optimizer by class path in model.optimizer: transformers.optimization.Adafactor.",
    "fsdp_min_num_params": "trainer.strategy: fsdp2 shards a decoder layer at a time.",
    "fsdp_transformer_layer_cls_to_wrap": "trainer.strategy: fsdp2 shards a decoder layer at a time.",
    "split_batches": "Prompts are split over devices by data.batch_size.",
    "dispatch_batches": "Every device reads its own prompts.",
    **dict.fromkeys(
        (
            *("fp16_backend", "fp16_opt_level", "half_precision_backend", "jit_mode_eval", "mp_parameters"),
            *("past_index", "ray_scope", "torchdynamo", "tpu_metrics_debug", "tpu_num_cores", "use_ipex"),
            *("use_mps_device", "xpu_backend"),
        ),
        _REMOVED,
    ),
}
"""Settings that TRL or transformers had once."""

OPEN_R1: dict[str, str] = {
    "test_split_size": "Name held-out rows in data.eval_dataset: another split, or a part such as train[95%:].",
    "benchmarks": "Benchmarks are run by tools of their own on the exported model (export.*).",
    "callbacks": "open-r1's names. Callbacks are class paths in trainer.callbacks.",
    "hub_model_revision": HUB,
    "overwrite_hub_revision": HUB,
    "push_to_hub_revision": HUB,
    **{
        f"cosine_{key}": _COSINE
        for key in ("min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct", "max_len")
    },
    **dict.fromkeys(
        (
            *("code_language", "code_eval_test_batch_size", "code_eval_scoring_mode", "code_provider"),
            *("enforce_same_language", "e2b_router_url", "ioi_provider", "morph_router_url"),
            *("parallel_code_exec_per_proc",),
        ),
        _CODE,
    ),
}
"""Settings of open-r1's script."""

UNSLOTH: dict[str, str] = {
    "max_lora_rank": "The engine takes the adapter's rank from model.lora_rank.",
    "unsloth_num_chunks": _UNSLOTH,
    "unsloth_vllm_standby": "VLLMColocate gives the engine's memory back while the policy trains with enable_sleep_mode: true.",
    "offload_embedding": _UNSLOTH,
    "finetune_vision_layers": _LAYERS,
    "finetune_language_layers": _LAYERS,
    "finetune_attention_modules": _LAYERS,
    "finetune_mlp_modules": _LAYERS,
    "unsloth_tiled_mlp": _UNSLOTH,
    "unsloth_logit_chunk_multiplier": _UNSLOTH,
    "unsloth_grpo_mini_batch": "model.max_tokens_per_microbatch says what fits into memory.",
    "full_finetuning": "model.finetuning_type: full trains every weight.",
    "float8_kv_cache": "model.generator.init_args.engine_kwargs: {kv_cache_dtype: fp8}.",
    "vllm_sampling_params": "Sampling settings are those of `fit --help`, under model: min_p, top_p, top_k, stop.",
    "loftq_config": "Give model.peft_config a class_path with init_args (peft.LoraConfig).",
    "bias": "Biases of the base are never trained with adapters.",
    "layers_to_transform": "Give model.peft_config a class_path with init_args (peft.LoraConfig).",
}
"""Arguments of Unsloth's notebooks."""

OTHERS: dict[str, str] = {
    "eos_token": "The end of a turn is the tokenizer's and generation_config's: set it in the model's files.",
    "replay_buffer_size": "model.dynamic_sampling: {replay_groups: N} trains on N kept groups a step, by prompts and not by completions.",
    "freeze_vision_tower": "With adapters, model.lora_target says which layers learn.",
    "max_pixels": _PIXELS,
    "min_pixels": _PIXELS,
    "trl_version": "It is an option of this command: migrate --trl_version 0.17.",
    "async_generation_timeout": "VLLMServer has request_timeout, in seconds.",
    "max_concurrent": "How environments run side by side is on docs/environments.md.",
    "mask_env_response": "What an environment says is never trained on.",
    "max_seq_len": "Prompt and completion are limited one by one: data.max_prompt_length, model.max_completion_length.",
}
"""Arguments of further scripts: verifiers, R1-V, smol-course."""

LAUNCHERS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("gpu_ids", "machine_rank", "main_process_ip", "main_process_port", "main_training_function"),
            *("master_addr", "master_port", "multi_gpu", "node_rank", "num_cpu_threads_per_process", "num_gpus"),
            *("rdzv_backend", "rdzv_conf", "rdzv_endpoint", "rdzv_id", "role", "same_network", "standalone"),
        ),
        _LAUNCHER,
    ),
    "dynamo_backend": "model.torch_compile compiles the policy.",
    "accelerate_config": "It names a file of TRL's that says how processes start: trainer.devices, trainer.strategy.",
}
"""Options of `accelerate launch`, torchrun and `trl` for the processes."""

RECIPES = {**AXOLOTL, **LAUNCHERS, **OTHERS, **UNSLOTH, **OPEN_R1, **OLDER}
"""Key -> why there is no counterpart, and what to do instead."""
