"""The optimizer with its arguments, and transformers' own schedules, whose length `fit` counts where the config does not say it."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.compose.steps import total_steps
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


def compose_optimizer(m: Migration) -> None:
    """Class path, learning rate, weight decay and what else the class takes."""
    name = str(m.get("optim", "adamw_torch_fused")).removeprefix("OptimizerNames.").lower()
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


SCHEDULE = "grpo_lightning.modules.schedules.TransformersSchedule"
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
"""Those of transformers that are a function of the step alone."""
OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")
"""Those among them that do not depend on the length of the run."""


def compose_schedule(m: Migration) -> None:
    """The schedule of lr_scheduler_type with its warm-up; nothing for a constant rate."""
    kind = m.get("lr_scheduler_type")
    name = str(getattr(kind, "value", kind)).lower()
    if name not in SCHEDULES:
        m.refuse(
            "lr_scheduler_type",
            f"{name} has no counterpart; the rate stays constant. Name a class path in model.lr_scheduler.",
        )
        for key in ("warmup_steps", "warmup_ratio", "lr_scheduler_kwargs"):
            m.refuse(key, f"lr_scheduler_type: {name} has no counterpart.")
        return
    m.needs_nothing("lr_scheduler_type")
    warmup = _warmup(m, name)
    arguments = _arguments(m, name)
    m.needs_nothing("warmup_steps", "warmup_ratio", "lr_scheduler_kwargs")
    if name == "constant" or (name == "constant_with_warmup" and not warmup):
        return
    target = "model.lr_scheduler.init_args"
    m.put("model.lr_scheduler.class_path", SCHEDULE, "lr_scheduler_type")
    m.put(f"{target}.name", name, "lr_scheduler_type")
    if warmup:
        m.put(f"{target}.warmup_steps", warmup, "warmup_steps" if m.get("warmup_steps") else "warmup_ratio")
    if arguments:
        m.put(f"{target}.arguments", arguments, "lr_scheduler_kwargs")
    total = total_steps(m)
    if total is not None and (name not in OPEN_ENDED or 0 < warmup < 1):
        m.put(f"{target}.total_steps", total, "max_steps")


def _warmup(m: Migration, name: str) -> float:
    """Steps of warm-up, below 1 a share of all steps: warmup_steps, else older TRL's warmup_ratio, which is a share."""
    steps, ratio = float(m.get("warmup_steps") or 0), float(m.get("warmup_ratio") or 0)
    if steps and ratio:
        m.refuse("warmup_ratio", "warmup_steps decides, as in TRL.")
    key, warmup = ("warmup_steps", steps) if steps else ("warmup_ratio", ratio)
    if warmup and name == "constant":
        m.refuse(key, "lr_scheduler_type: constant has no warm-up in TRL either.")
        return 0
    if warmup == 1 and key == "warmup_ratio":  # all of the run: one step would be read as a number of steps
        return float(total_steps(m) or 0)
    return int(warmup) if warmup >= 1 else warmup


def _arguments(m: Migration, name: str) -> dict[str, Any]:
    given = dict(m.get("lr_scheduler_kwargs") or {})
    if given and name in ("constant", "constant_with_warmup"):
        m.refuse("lr_scheduler_kwargs", f"lr_scheduler_type: {name} has none in TRL either.")
        return {}
    return given
