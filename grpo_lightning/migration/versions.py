"""Which version of TRL a config was written for, and what it had as defaults then.

Read from TRL's tags v0.14.0 to v1.9.0, its main branch at 1.10.0.dev0, and from 1.16.0; what changed after 1.10 stands at 1.16.
"""

from __future__ import annotations

from typing import Any

Version = tuple[int, int]

OLDEST: Version = (0, 14)
"""The first with GRPOConfig."""
NEWEST: Version = (1, 16)

DEFAULTS: dict[str, tuple[tuple[Version, Any], ...]] = {
    "beta": (((0, 14), 0.04), ((0, 19), 0.0)),
    "temperature": (((0, 14), 0.9), ((0, 18), 1.0)),
    "loss_type": (((0, 14), "grpo"), ((0, 16), "bnpo"), ((0, 22), "dapo")),
    "top_k": (((0, 14), 50), ((0, 18), 0)),
    "max_completion_length": (((0, 14), 256), ((1, 10), 512)),
    "max_prompt_length": (((0, 14), 512), ((0, 26), None)),
    "per_device_train_batch_size": (((0, 14), 1), ((0, 15), 8)),
    "gradient_accumulation_steps": (((0, 14), 8), ((0, 15), 1)),
    "ref_model_mixup_alpha": (((0, 15), 0.9), ((0, 16), 0.6)),
    "ref_model_sync_steps": (((0, 15), 64), ((0, 16), 512)),
    "use_bias_correction_kl": (((0, 14), False), ((1, 16), True)),
    "bf16": (((0, 14), False), ((0, 19), None)),
    "gradient_checkpointing": (((0, 14), False), ((0, 22), True)),
    "logging_steps": (((0, 14), 500), ((0, 19), 10)),
    "vllm_mode": (((0, 14), "colocate"), ((0, 16), "server"), ((1, 0), "colocate")),
    "vllm_importance_sampling_correction": (((0, 14), False), ((0, 23), True)),
    "vllm_importance_sampling_mode": (((0, 14), "token_truncate"), ((0, 26), "sequence_mask")),
    "vllm_importance_sampling_clip_max": (((0, 14), 2.0), ((0, 26), 3.0)),
}
"""Setting -> (first version, default from there on), oldest first. What TRL did before it had the setting counts."""

LEARNING = ("beta", "temperature", "loss_type", "top_k", "max_completion_length", "max_prompt_length")
"""Those that decide what is learnt in every run: named where the version is not certain."""
WITH_ENGINE = ("vllm_mode", "vllm_importance_sampling_correction")
"""The same with use_vllm."""

LAST: dict[str, Version] = {
    "vllm_device": (0, 17),
    "vllm_dtype": (0, 17),
    "vllm_max_model_len": (0, 17),
    "vllm_enable_prefix_caching": (0, 17),
    "evaluation_strategy": (0, 17),
    "torch_dtype": (0, 26),
    "wandb_log_unique_prompts": (0, 26),
    "max_prompt_length": (0, 27),
    "use_liger_loss": (0, 27),
    "vllm_guided_decoding_regex": (0, 27),
}
"""Keys that TRL has no more, with the last version that took them."""

_SINCE: dict[Version, str] = {
    (0, 15): "reward_weights sync_ref_model ref_model_mixup_alpha ref_model_sync_steps log_completions",
    (
        0,
        16,
    ): "num_iterations epsilon epsilon_high scale_rewards top_p top_k min_p repetition_penalty cache_implementation "
    "vllm_server_host vllm_server_port vllm_server_timeout vllm_guided_decoding_regex",
    (
        0,
        17,
    ): "loss_type mask_truncated_completions shuffle_dataset disable_dropout num_completions_to_print use_liger_loss",
    (
        0,
        18,
    ): "delta generation_batch_size steps_per_generation vllm_mode vllm_tensor_parallel_size vllm_server_base_url",
    (0, 19): "generation_kwargs",
    (0, 20): "importance_sampling_level top_entropy_quantile use_transformers_paged",
    (0, 21): "vllm_model_impl",
    (0, 23): "vllm_enable_sleep_mode vllm_importance_sampling_correction vllm_importance_sampling_cap dtype",
    (0, 25): "chat_template_kwargs cast_lm_head_to_fp32",
    (0, 26): "num_generations_eval sapo_temperature_pos sapo_temperature_neg use_bias_correction_kl log_unique_prompts "
    "vllm_importance_sampling_mode vllm_max_model_length",
    (0, 27): "multi_objective_aggregation off_policy_mask_threshold vllm_structured_outputs_regex vllm_group_port "
    "max_tool_calling_iterations",
    (1, 0): "vespo_k_pos vespo_k_neg vespo_lambda_pos vespo_lambda_neg pad_to_multiple_of",
    (1, 6): "vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min",
    (1, 7): "use_transformers_continuous_batching",
    (1, 8): "entropy_coef use_adaptive_entropy entropy_target",
}
FIRST: dict[str, Version] = {key: version for version, keys in _SINCE.items() for key in keys.split()}
"""Key -> the first version that took it."""


def version_range(keys: set[str]) -> tuple[Version, Version]:
    """The oldest and the newest version of TRL that a config with these keys can be for.

    Keys that TRL has no more say until when, the others since when. Without any of the former it is taken to be for 1.16.

    Example:
        >>> version_range({"beta", "vllm_device", "epsilon_high"})  # removed after 0.17, new in 0.16
        ((0, 16), (0, 17))
    """
    last = min((LAST[key] for key in keys & LAST.keys()), default=NEWEST)
    if last == NEWEST:
        return NEWEST, NEWEST
    first = max((FIRST[key] for key in keys & FIRST.keys()), default=OLDEST)
    return min(first, last), last


def default_at(key: str, version: Version) -> Any:
    """TRL's default of a setting in a version; None where it had none yet."""
    return next((value for first, value in reversed(DEFAULTS[key]) if first <= version), None)


def parse_version(text: str) -> Version:
    """``0.17`` or ``0.17.0`` as a pair.

    Raises:
        ValueError: If it is no version, or older than GRPOConfig.
    """
    parts = text.split(".")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
        raise ValueError(f"--trl_version {text} is no version. Write it as 0.17.")
    version = (int(parts[0]), int(parts[1]))
    if version < OLDEST:
        raise ValueError(f"--trl_version {text}: TRL has GRPO since 0.14.")
    return min(version, NEWEST)


def shown(version: Version) -> str:
    """As people write it."""
    return f"{version[0]}.{version[1]}"


def history(key: str, first: Version, last: Version) -> str:
    """The defaults of a setting between two versions, in words; empty where there was one only.

    Example:
        >>> history("beta", (0, 14), (0, 27))
        '0.04 before TRL 0.19, 0.0 since'
    """
    spans = [(start, value) for start, value in DEFAULTS[key] if start <= last]
    spans = [spans[i] for i in range(len(spans)) if i + 1 == len(spans) or spans[i + 1][0] > first]
    if len(spans) < 2:
        return ""
    ends = [f"{value} before TRL {shown(spans[i + 1][0])}" for i, (_, value) in enumerate(spans[:-1])]
    return ", ".join([*ends, f"{spans[-1][1]} since"])
