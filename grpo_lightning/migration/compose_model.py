"""The parts of ``model.*`` and ``data.*`` that are worked out: policy, rewards, generator, datasets."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.migration import Migration

TRL_REWARDS: dict[str, Any] = {
    "accuracy_reward": {
        "class_path": "grpo_lightning.rewards.AccuracyReward",
        "init_args": {"mode": "math", "answer_key": "solution"},
    },
    "think_format_reward": {
        "class_path": "grpo_lightning.rewards.FormatReward",
        "init_args": {"pattern": r"<think>(?!.*<think>)(.*?)</think>.*"},
    },
    "get_soft_overlong_punishment": {
        "class_path": "grpo_lightning.rewards.LengthReward",
        "init_args": {"shape": "soft_overlong", "max_length": 1280, "cache_length": 256},
    },
}
"""TRL's own rewards by the names its script knows."""

GENERATION_KWARGS = {
    "top_p": "model.top_p",
    "top_k": "model.top_k",
    "min_p": "model.min_p",
    "temperature": "model.temperature",
    "repetition_penalty": "model.repetition_penalty",
    "stop": "model.stop",
    "stop_strings": "model.stop",
    "max_new_tokens": "model.max_completion_length",
    "max_tokens": "model.max_completion_length",
}

ENGINE = {
    "vllm_gpu_memory_utilization": "gpu_memory_utilization",
    "vllm_max_model_length": "max_model_length",
    "vllm_tensor_parallel_size": "tensor_parallel_size",
    "vllm_enable_sleep_mode": "enable_sleep_mode",
}
SERVER = {"vllm_server_host": "host", "vllm_server_port": "port", "vllm_server_timeout": "timeout"}


LORA = {
    "lora_r": "model.lora_rank",
    "lora_rank": "model.lora_rank",
    "lora_alpha": "model.lora_alpha",
    "lora_dropout": "model.lora_dropout",
    "lora_target": "model.lora_target",
}
QUANTIZATION = {
    "bnb_4bit_compute_dtype": "model.bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type": "model.bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant": "model.bnb_4bit_use_double_quant",
    "use_bnb_nested_quant": "model.bnb_4bit_use_double_quant",
}


def compose_policy(m: Migration) -> None:
    """Weights, adapters, datasets, sampling."""
    _dtype_and_attention(m)
    _adapters(m)
    _datasets(m)
    m.put("model.min_p", float(m.get("min_p") or 0.0), "min_p")
    for key, value in (m.get("generation_kwargs") or {}).items():
        if key in GENERATION_KWARGS:
            is_text = key.startswith("stop") and isinstance(value, str)
            m.put(GENERATION_KWARGS[key], [value] if is_text else value, "generation_kwargs")
        else:
            m.refuse("generation_kwargs", f"{key}: sampling settings are those of `fit --help`, under model.")
    if not m.get("generation_kwargs"):
        m.needs_nothing("generation_kwargs")
    if m.get("vllm_structured_outputs_regex"):
        regex = m.get("vllm_structured_outputs_regex")
        m.put("model.structured_outputs", {"regex": regex}, "vllm_structured_outputs_regex")
    m.needs_nothing("vllm_structured_outputs_regex")
    if m.get("vllm_importance_sampling_cap") is not None:
        m.put("model.importance_sampling_max", m.get("vllm_importance_sampling_cap"), "vllm_importance_sampling_cap")
    m.needs_nothing("vllm_importance_sampling_cap")


def _dtype_and_attention(m: Migration) -> None:
    if m.get("dtype"):
        m.put("model.dtype", str(m.get("dtype")).removeprefix("torch."), "dtype")
    m.needs_nothing("dtype")
    for key, value in (m.get("model_init_kwargs") or {}).items():
        if key in ("dtype", "torch_dtype"):
            m.put("model.dtype", str(value).removeprefix("torch."), "model_init_kwargs")
        elif key == "attn_implementation":
            m.put("model.attn_implementation", value, "model_init_kwargs")
        else:
            m.refuse("model_init_kwargs", f"{key} is not passed on; model.dtype and model.attn_implementation are.")
    if not m.get("model_init_kwargs"):
        m.needs_nothing("model_init_kwargs")


def _adapters(m: Migration) -> None:
    """LoRA and 4-bit settings, as far as adapters are on: without them, ours would refuse them."""
    kind = str(m.get("finetuning_type", "lora" if m.get("use_peft") else "full"))
    in_4bit = kind == "qlora" or bool(m.get("load_in_4bit"))
    m.needs_nothing("use_peft")
    if kind == "full":
        for key in (*LORA, *QUANTIZATION, "load_in_4bit", "lora_target_modules"):
            m.refuse(key, "Without adapters (use_peft, finetuning_type: lora) it has no effect.")
        return
    m.put("model.finetuning_type", "qlora" if in_4bit else "lora", "use_peft", "finetuning_type", "load_in_4bit")
    defaults = {"lora_r": 16, "lora_alpha": 32} if m.get("use_peft") else {}  # TRL's differ from ours
    for key, target in LORA.items():
        if m.get(key, defaults.get(key)) is not None:
            m.put(target, m.get(key, defaults.get(key)), key)
    for key, target in QUANTIZATION.items():
        if not in_4bit:
            m.refuse(key, "The base is not in 4 bits, so it has no effect.")
        elif m.get(key) is not None:
            m.put(target, m.get(key), key)
    targets = m.get("lora_target_modules")
    if targets:
        names = [targets] if isinstance(targets, str) else list(targets)
        m.put("model.lora_target", "all" if names == ["all-linear"] else names, "lora_target_modules")
    m.needs_nothing("lora_target_modules")


def _datasets(m: Migration) -> None:
    for key in ("dataset", "eval_dataset"):
        if m.get(key):
            m.put(f"data.{key}", m.get(key), key)
        m.needs_nothing(key)
    script = ("dataset_config", "dataset_train_split", "dataset_test_split")
    m.needs_nothing("dataset_name")
    if not m.get("dataset_name"):
        for key in script:
            m.refuse(key, "Without dataset_name it names nothing.")
        return
    subset = {"subset": m.get("dataset_config")} if m.get("dataset_config") else {}
    entry = {"hf_hub_url": m.get("dataset_name"), **subset}
    m.put("data.dataset", {**entry, "split": m.get("dataset_train_split", "train")}, "dataset_name", *script[:2])
    if str(m.get("eval_strategy", "no")) not in ("no", "False"):
        m.put("data.eval_dataset", {**entry, "split": m.get("dataset_test_split", "test")}, "dataset_name", script[2])
    else:
        m.refuse("dataset_test_split", "eval_strategy: no decides, as in TRL.")


def compose_rewards(m: Migration) -> None:
    """Comma-separated names (the seeds) or a list of names and import paths (TRL)."""
    names = _split(m.get("reward_funcs"))
    rewards = [TRL_REWARDS.get(name, name) for name in names]
    if "reasoning_accuracy_reward" in names:
        reason = (
            "reasoning_accuracy_reward reads the answer behind </think>: use AccuracyReward and its extraction setting."
        )
        m.refuse("reward_funcs", reason)
        rewards = [reward for reward in rewards if reward != "reasoning_accuracy_reward"]
    if rewards:
        m.put("model.rewards", rewards, "reward_funcs")
    m.needs_nothing("reward_funcs")
    if m.get("reward_model_name_or_path"):
        reason = "Rewards are functions and classes: write one around the model and name it by import path (docs/rewards.md)."
        m.refuse("reward_model_name_or_path", reason)
    m.needs_nothing("reward_model_name_or_path")
    if m.get("reward_weights") is not None:
        weights = [float(weight) for weight in _split(m.get("reward_weights"))]
        m.put("model.reward_weights", weights, "reward_weights")
    m.needs_nothing("reward_weights")


def _split(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def compose_generator(m: Migration) -> None:
    """use_vllm and vllm_* -> a generator by class path."""
    if not m.get("use_vllm"):
        m.put("model.generator.class_path", "grpo_lightning.generation.TransformersGenerator", "use_vllm")
        for key in ("vllm_mode", *ENGINE, *SERVER, "vllm_model_impl"):
            m.refuse(key, "use_vllm is off, so it has no effect in TRL either.")
        return
    serves = m.get("vllm_mode") == "server"
    name = "VLLMServer" if serves else "VLLMColocate"
    m.put("model.generator.class_path", f"grpo_lightning.generation.{name}", "use_vllm", "vllm_mode")
    used, unused = (SERVER, ENGINE) if serves else (ENGINE, SERVER)
    for key, argument in used.items():
        if m.get(key) is not None:
            value = "127.0.0.1" if m.get(key) == "0.0.0.0" else m.get(key)  # an address to connect to, not to listen on
            m.put(f"model.generator.init_args.{argument}", value, key)
    for key in unused:
        m.refuse(key, f"vllm_mode: {m.get('vllm_mode', 'colocate')} does not use it.")
    if m.get("vllm_model_impl") and serves:
        m.refuse("vllm_model_impl", "It is an option of the server that you start.")
    elif m.get("vllm_model_impl"):
        m.put("model.generator.init_args.engine_kwargs.model_impl", m.get("vllm_model_impl"), "vllm_model_impl")
    m.needs_nothing(*used)
