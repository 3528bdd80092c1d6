"""Settings of TRL and of GRPOArguments that are ours under another name, with the same value; and defaults that differ."""

from __future__ import annotations

_OBJECTIVE = (
    "num_generations",
    "max_completion_length",
    "temperature",
    "top_p",
    "repetition_penalty",
    "beta",
    "num_iterations",
    "epsilon",
    "epsilon_high",
    "delta",
    "loss_type",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
    "importance_sampling_level",
    "multi_objective_aggregation",
    "scale_rewards",
    "mask_truncated_completions",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "entropy_coef_min",
    "entropy_coef_max",
    "entropy_coef_delta",
    "entropy_target",
    "off_policy_mask_threshold",
    "router_aux_loss_coef",
    "use_bias_correction_kl",
    "max_grad_norm",
    "use_liger_kernel",
    "torch_compile",
)

_POLICY = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "attn_implementation",
    "finetuning_type",
    "init_special_tokens",
    "new_special_tokens_config",
    "template",
)

SAME: dict[str, str] = {
    **{name: f"model.{name}" for name in (*_OBJECTIVE, *_POLICY)},
    "converter": "data.converter",
    "load_from_cache_file": "data.load_from_cache_file",
    "replace_text": "data.replace_text",
    "shuffle_dataset": "data.shuffle",
    "output_dir": "trainer.default_root_dir",
    "full_determinism": "trainer.deterministic",
    "save_only_model": "checkpoint.save_weights_only",
    "seed": "seed_everything",
}
"""Key -> our key, the same value."""

IMPLIED: dict[str, object] = {
    "num_train_epochs": 3.0,
    "max_completion_length": 512,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 8,
    "bf16": None,
    "gradient_checkpointing": True,
    "use_vllm": False,
    "save_total_limit": None,
    "save_steps": 500,
    "logging_steps": 10,
}
"""TRL 1.16's defaults that differ from ours: they are written out where a config leaves them out."""

GRPO_ARGUMENTS_IMPLIED: dict[str, object] = {"max_completion_length": 256, "use_vllm": True}
"""The same for a config of GRPOArguments, which has defaults of its own for these."""

GRPO_ARGUMENTS_KEYS = frozenset(
    {"stage", "dataset", "eval_dataset", "converter", "finetuning_type", "lora_rank", "template"}
)
"""A config with one of these keys is of GRPOArguments."""
