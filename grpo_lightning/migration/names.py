"""Other names of TRL's settings: older ones of TRL and transformers, those of open-r1 and of Unsloth's notebooks."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.numbers import check_numbers

ALIASES: dict[str, str] = {
    # older TRL
    "torch_dtype": "dtype",
    "vllm_max_model_len": "vllm_max_model_length",
    "vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "dataset_configs": "dataset_config",
    # older transformers
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    # open-r1
    "wandb_project": "project",
    # blogs' scripts
    "dataset_id_or_path": "dataset_name",
    "dataset_splits": "dataset_train_split",
    # Unsloth's notebooks: from_pretrained, get_peft_model, GRPOConfig
    "model_name": "model_name_or_path",
    "max_seq_length": "vllm_max_model_length",
    "fast_inference": "use_vllm",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "r": "lora_r",
    "target_modules": "lora_target_modules",
    "use_gradient_checkpointing": "gradient_checkpointing",
    "random_state": "seed",
}
"""Name -> the one that TRL 1.16 has. Where both are given, the latter decides."""


def with_current_names(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Settings under the names of TRL 1.16.

    Returns:
        The settings; current name -> the name that was written; and written names that another one overrides, with the
        reason.

    Raises:
        ValueError: If one that is a number holds something else.
    """
    current: dict[str, Any] = {}
    written: dict[str, str] = {}
    overridden: dict[str, str] = {}
    for key, value in settings.items():
        name = ALIASES.get(key, key)
        if name == key:
            current[key] = value
        elif name in settings or name in written:
            overridden[key] = f"{written.get(name, name)} says the same, and decides."
        else:
            current[name], written[name] = value, key
    check_numbers(current)
    return current, written, overridden
