"""A config of axolotl with ``rl: grpo``, which runs TRL's trainer, in TRL's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {
    "base_model": "model_name_or_path",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "wandb_name": "run_name",
    "chat_template_jinja": "chat_template",
}
"""axolotl's name -> TRL's; other names are the same in both, or have no counterpart."""
VLLM = {
    "host": "vllm_server_host",
    "port": "vllm_server_port",
    "tensor_parallel_size": "vllm_tensor_parallel_size",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "max_model_len": "vllm_max_model_length",
}


def is_axolotl(content: Mapping[str, Any]) -> bool:
    """Whether the keys are axolotl's."""
    return "base_model" in content


def from_axolotl(content: Mapping[str, Any]) -> dict[str, Any]:
    """Its settings as TRL's flat keys.

    Raises:
        ValueError: If it is for another kind of training.
    """
    if content.get("rl") != "grpo":
        raise ValueError(f"This config of axolotl has rl: {content.get('rl')}. Only rl: grpo has a counterpart here.")
    sections = {
        "rl",
        "trl",
        "vllm",
        "adapter",
        "lora_target_linear",
        "flash_attention",
        "bf16",
        "datasets",
    }
    settings = {NAMES.get(key, key): value for key, value in content.items() if key not in sections}
    template = None if content.get("chat_template_jinja") else settings.pop("chat_template", None)
    if template not in (None, "tokenizer_default", "jinja"):
        settings["chat_template_name"] = template
    settings |= dict(content.get("trl") or {})
    if settings.get("use_vllm") and {"host", "port"} & (content.get("vllm") or {}).keys():
        settings.setdefault("vllm_mode", "server")  # `axolotl vllm-serve` has started it
    if settings.get("wandb_project"):
        settings.setdefault("report_to", "wandb")
    settings |= {VLLM[key]: value for key, value in (content.get("vllm") or {}).items() if key in VLLM}
    if content.get("adapter") in ("lora", "qlora"):
        settings["use_peft"] = True
        settings["load_in_4bit"] = content["adapter"] == "qlora" or bool(content.get("load_in_4bit"))
        if content.get("lora_target_linear"):
            settings["lora_target_modules"] = "all-linear"
    if content.get("flash_attention"):
        settings["attn_implementation"] = "flash_attention_2"
    if content.get("bf16") is not None:
        settings["bf16"] = content["bf16"] not in (False, "false")  # auto and full among others
    if content.get("datasets"):
        settings["datasets"] = [
            {key: value for key, value in entry.items() if key in ("path", "name", "data_dir", "data_files", "split")}
            for entry in content["datasets"]
        ]
        kinds = [entry["type"] for entry in content["datasets"] if entry.get("type")]
        if kinds:
            settings["type"] = kinds[0] if len(kinds) == 1 else kinds
    return settings


KEYS: dict[str, str] = {
    "chat_template_name": "axolotl's chat_template names a template of its own. The tokenizer's is used; give another as Jinja text in "
    "model.chat_template_kwargs.chat_template.",
    "gc_steps": "Python's garbage collector decides by itself.",
    "type": "axolotl's function or name for what makes prompts of rows. Here it is data.converter: one of this package's, or a "
    "function by its import path that takes a row and gives one with prompt and the columns for the rewards.",
    "sequence_len": "data.max_prompt_length bounds prompts, model.max_completion_length completions.",
    "dataset_prepared_path": "Datasets are read and tokenised when the run starts; the datasets library has the cache.",
    "val_set_size": "Name held-out rows in data.eval_dataset: another split, or a part such as train[95%:].",
    "sample_packing": "Micro-batches are always packed.",
    "pad_to_sequence_len": "Nothing is padded.",
    "skip_prepare_dataset": "Prompts are always converted when the run starts.",
    "special_tokens": "The tokenizer's own are used; model.new_special_tokens_config adds some.",
    "saves_per_epoch": "checkpoint.every_n_train_steps, or checkpoint.every_n_epochs.",
    "evals_per_epoch": "trainer.val_check_interval: 0.25 is four times an epoch.",
    "wandb_watch": "Lightning's loggers decide: trainer.logger.",
    "wandb_log_model": "Lightning's loggers decide: trainer.logger.",
    "train_on_inputs": "Prompts are never trained on.",
    "strict": "Every key is checked here.",
    "plugins": "axolotl's plugins are not used here.",
    "xformers_attention": "model.attn_implementation.",
    "sdp_attention": "model.attn_implementation: sdpa.",
}
"""axolotl's own keys without a counterpart."""
