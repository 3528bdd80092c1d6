"""Weights and adapters."""

from __future__ import annotations

from grpo_lightning.migration.migration import Migration

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
UNSLOTH = ("r", "target_modules", "fast_inference", "max_lora_rank")
"""A config with one of these comes from a notebook of Unsloth's, which trains adapters without being told."""


def compose_policy(m: Migration) -> None:
    """Dtype and attention, adapters, gradient checkpointing."""
    kind = str(m.get("finetuning_type", "lora" if m.get("use_peft") or _is_unsloth(m) else "full"))
    _dtype_and_attention(m, trains_all=kind == "full")
    _adapters(m, kind)
    m.put("model.gradient_checkpointing", bool(m.get("gradient_checkpointing")), "gradient_checkpointing")


def _is_unsloth(m: Migration) -> bool:
    return any(key in m.given for key in UNSLOTH) and not m.given.get("full_finetuning")


def _dtype_and_attention(m: Migration, trains_all: bool) -> None:
    if m.get("dtype"):
        _put_dtype(m, m.get("dtype"), "dtype", trains_all)
    m.needs_nothing("dtype")
    for key, value in (m.get("model_init_kwargs") or {}).items():
        if key in ("dtype", "torch_dtype"):
            _put_dtype(m, value, "model_init_kwargs", trains_all)
        elif key == "attn_implementation":
            m.put("model.attn_implementation", value, "model_init_kwargs")
        elif key == "use_cache":
            m.needs_nothing("model_init_kwargs")
        else:
            m.refuse("model_init_kwargs", f"{key} is not passed on; model.dtype and model.attn_implementation are.")
    if not m.get("model_init_kwargs"):
        m.needs_nothing("model_init_kwargs")


def _put_dtype(m: Migration, value: object, key: str, trains_all: bool) -> None:
    dtype = str(value).removeprefix("torch.")
    m.put("model.dtype", dtype, key)
    if dtype == "auto":
        m.refuse(
            key,
            "auto is the dtype of the checkpoint in TRL, and here follows trainer.precision: float32 weights under "
            "bf16-mixed. Name one for weights in half precision.",
        )
    elif dtype in ("bfloat16", "float16") and trains_all:
        m.put("model.allow_rounded_steps", True, key)
        m.refuse(
            key,
            f"Steps of {float(m.get('learning_rate', 1e-6)):g} mostly round away on {dtype} weights, as in TRL; "
            "model.allow_rounded_steps lets the run go on so. Better: leave both out for float32 weights under "
            "trainer.precision bf16-mixed, or take optimi.AdamW as model.optimizer.",
        )


def _adapters(m: Migration, kind: str) -> None:
    """LoRA and 4-bit settings, as far as adapters are on: without them, ours would refuse them."""
    in_4bit = kind == "qlora" or bool(m.get("load_in_4bit"))
    m.needs_nothing("use_peft")
    if kind == "full":
        for key in (*LORA, *QUANTIZATION, "load_in_4bit", "lora_target_modules"):
            m.refuse(key, "Without adapters (use_peft, finetuning_type: lora) it has no effect.")
        return
    m.put("model.finetuning_type", "qlora" if in_4bit else "lora", "use_peft", "finetuning_type", "load_in_4bit")
    defaults = {} if m.is_grpo_arguments else {"lora_r": 16, "lora_alpha": 32}  # TRL's differ from ours
    for key, target in LORA.items():
        if m.get(key, defaults.get(key)) is not None:
            m.put(target, m.get(key, defaults.get(key)), key)
    for key, target in QUANTIZATION.items():
        if not in_4bit:
            m.refuse(key, "The base is not in 4 bits, so it has no effect.")
        elif m.get(key) is not None:
            m.put(target, m.get(key), key)
    _targets(m)


def _targets(m: Migration) -> None:
    targets = m.get("lora_target_modules")
    names = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else list(targets or [])
    if names:
        m.put("model.lora_target", "all" if names == ["all-linear"] else names, "lora_target_modules")
    elif not m.is_grpo_arguments:
        m.put("model.lora_target", "peft", "lora_target_modules")
    m.needs_nothing("lora_target_modules")
