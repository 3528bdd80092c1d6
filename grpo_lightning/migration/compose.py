"""Batches, optimizer and schedule, worked out from several of their settings; and the list of all such functions."""

from __future__ import annotations

import math
from collections.abc import Callable

from grpo_lightning.migration.compose_model import compose_generator, compose_policy, compose_rewards
from grpo_lightning.migration.compose_run import (
    compose_checkpoints,
    compose_evaluation,
    compose_length,
    compose_logging,
    compose_strategy,
)
from grpo_lightning.migration.migration import Migration

ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")
OPTIMIZERS = {
    **{name: "torch.optim.AdamW" for name in ADAMW},
    "sgd": "torch.optim.SGD",
    "adagrad": "torch.optim.Adagrad",
    "rmsprop": "torch.optim.RMSprop",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
    "adamw_bnb_8bit": "bitsandbytes.optim.AdamW8bit",
    "paged_adamw_8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "paged_adamw_32bit": "bitsandbytes.optim.PagedAdamW32bit",
}
SCHEDULE = "grpo_lightning.modules.schedules.WarmupSchedule"


def compose_batches(m: Migration) -> None:
    """Completions per device and accumulation step -> prompts per device and GRPO step.

    TRL generates per_device_train_batch_size * steps_per_generation completions per device at a time and takes
    steps_per_generation / gradient_accumulation_steps optimizer steps on them. With fewer than one, several
    generations of the same policy make one optimizer step: for us they are one step.
    """
    keys = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "generation_batch_size",
        "steps_per_generation",
    )
    per_device, accumulation = int(m.get(keys[0], 8)), int(m.get(keys[1], 1))
    generations = int(m.get("num_generations") or 8)
    per_generation = m.get("steps_per_generation") or accumulation
    if m.get("generation_batch_size"):
        per_generation = m.get("generation_batch_size") / (per_device * m.devices)
    updates = per_generation / accumulation
    prompts = per_device * max(per_generation, accumulation) / generations
    m.put("data.batch_size", max(1, round(prompts)), *keys)
    if updates > 1:
        m.put("model.num_minibatches", round(updates), *keys[1:])
    if prompts != max(1, round(prompts)):
        m.refuse(
            "per_device_train_batch_size",
            f"{prompts:g} prompts per device and step do not fit: groups stay on one device here. Written: "
            f"data.batch_size {m.config['data.batch_size']}.",
        )
    if m.get("per_device_eval_batch_size"):
        each = int(m.get("num_generations_eval") or generations)
        completions = int(m.get("per_device_eval_batch_size"))
        m.put("data.eval_batch_size", max(1, completions // each), "per_device_eval_batch_size")


def compose_prompts(m: Migration) -> None:
    """The longest prompt, which only older versions of TRL have."""
    limit = m.get("max_prompt_length")
    if limit:
        m.put("data.max_prompt_length", int(limit), "max_prompt_length")
        reason = (
            f"Written: data.max_prompt_length {int(limit)}. Longer prompts are left out; older TRL cut off their start."
        )
        m.refuse("max_prompt_length", reason)
    m.needs_nothing("max_prompt_length")


def compose_optimizer(m: Migration) -> None:
    """The optimizer with its arguments."""
    name = str(m.get("optim", "adamw_torch_fused"))
    keys = ("learning_rate", "weight_decay")
    if name not in OPTIMIZERS:
        m.refuse(
            "optim", f"No class path is known for {name}; AdamW is written. Name yours in model.optimizer.class_path."
        )
    is_adam = "adam" in OPTIMIZERS.get(name, ".AdamW").lower()
    m.put(
        "model.optimizer.class_path", OPTIMIZERS.get(name, "torch.optim.AdamW"), "optim" if name in OPTIMIZERS else ""
    )
    m.put("model.optimizer.init_args.lr", float(m.get("learning_rate", 1e-6)), keys[0])
    m.put("model.optimizer.init_args.weight_decay", float(m.get("weight_decay", 0.0)), keys[1])
    if is_adam:
        betas = [float(m.get("adam_beta1", 0.9)), float(m.get("adam_beta2", 0.999))]
        m.put("model.optimizer.init_args.betas", betas, "adam_beta1", "adam_beta2")
        m.put("model.optimizer.init_args.eps", float(m.get("adam_epsilon", 1e-8)), "adam_epsilon")
    else:
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            m.refuse(key, f"optim: {name} has no such argument.")
    if name == "adamw_torch_fused":
        m.put("model.optimizer.init_args.fused", True, "optim")


def compose_schedule(m: Migration) -> None:
    """Warm-up and decay."""
    name = str(m.get("lr_scheduler_type")).removeprefix("SchedulerType.").lower()
    shapes = {"linear": "linear", "cosine": "cosine", "cosine_with_min_lr": "cosine", "constant": "constant"}
    shape = (shapes | {"constant_with_warmup": "constant"}).get(name)
    if shape is None:
        reason = f"{name} has no counterpart in WarmupSchedule; constant is written. Name a class path in model.lr_scheduler."
        m.refuse("lr_scheduler_type", reason)
    total = _total_steps(m)
    warmup = _warmup_steps(m, name, total)
    can_decay = shape in ("linear", "cosine")
    if can_decay and total is None:
        reason = (
            f"A {shape} decay ends at a step: give --total_steps, or max_steps. Without it the rate stays constant."
        )
        m.refused["lr_scheduler_type"] = reason
        shape = None
    decays = can_decay and total is not None
    if shape is not None:
        m.needs_nothing("lr_scheduler_type")
    m.needs_nothing("warmup_steps", "warmup_ratio")
    _min_ratio(m, can_decay, decays)
    if not decays and not warmup:
        return
    m.put("model.lr_scheduler.class_path", SCHEDULE, "lr_scheduler_type" if decays else "")
    m.put("model.lr_scheduler.init_args.warmup_steps", warmup, "warmup_steps", "warmup_ratio")
    if decays:
        m.put("model.lr_scheduler.init_args.total_steps", total, "lr_scheduler_type")
        m.put("model.lr_scheduler.init_args.shape", shape, "lr_scheduler_type")


def _warmup_steps(m: Migration, name: str, total: int | None) -> int:
    """Steps of warm-up: warmup_steps, below 1 a share of all steps; else older TRL's warmup_ratio, which is a share."""
    key = "warmup_steps" if m.get("warmup_steps") else "warmup_ratio"
    warmup = float(m.get(key) or 0)
    if key == "warmup_steps" and m.get("warmup_ratio"):
        m.refuse("warmup_ratio", "warmup_steps decides, as in TRL.")
    if warmup and name == "constant":
        m.refuse(key, "lr_scheduler_type: constant has no warm-up in TRL either.")
        return 0
    if not (0 < warmup < 1 or key == "warmup_ratio"):
        return int(warmup)
    if warmup and total is None:
        reason = f"{warmup:g} of an unknown number of steps: give --total_steps, or max_steps. Without it there is no warm-up."
        m.refuse(key, reason)
    return math.ceil(warmup * total) if total else 0


def _min_ratio(m: Migration, can_decay: bool, decays: bool) -> None:
    """Where the decay ends. ``can_decay`` without ``decays``: only the number of steps is missing."""
    for key, value in (m.get("lr_scheduler_kwargs") or {}).items():
        ratio = {"min_lr_rate": value, "min_lr": value / float(m.get("learning_rate", 1e-6)) if value else 0.0}.get(key)
        if ratio is not None and can_decay and not decays:
            reason = f"{key} is where the decay ends, and the step is not known: give --total_steps, or max_steps."
            m.refuse("lr_scheduler_kwargs", reason)
        elif ratio is None or not decays:
            m.refuse("lr_scheduler_kwargs", f"{key}: WarmupSchedule knows min_ratio only, with linear and cosine.")
        else:
            m.put("model.lr_scheduler.init_args.min_ratio", float(ratio), "lr_scheduler_kwargs")
    if not m.get("lr_scheduler_kwargs"):
        m.needs_nothing("lr_scheduler_kwargs")


def _total_steps(m: Migration) -> int | None:
    if m.total_steps:
        return m.total_steps
    return int(m.get("max_steps")) if (m.get("max_steps") or -1) > 0 else None


COMPOSERS: list[Callable[[Migration], None]] = [
    compose_policy,
    compose_rewards,
    compose_generator,
    compose_batches,
    compose_prompts,
    compose_optimizer,
    compose_schedule,
    compose_length,
    compose_strategy,
    compose_logging,
    compose_checkpoints,
    compose_evaluation,
]
