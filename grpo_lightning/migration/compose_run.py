"""What is worked out of ``trainer.*`` and ``checkpoint.*``: length, strategy, logs, checkpoints, evaluation."""

from __future__ import annotations

import math
from typing import Any

from grpo_lightning.migration.migration import Migration

LOGGERS = {
    "wandb": "lightning.pytorch.loggers.WandbLogger",
    "tensorboard": "lightning.pytorch.loggers.TensorBoardLogger",
    "mlflow": "lightning.pytorch.loggers.MLFlowLogger",
    "comet_ml": "lightning.pytorch.loggers.CometLogger",
    "neptune": "lightning.pytorch.loggers.NeptuneLogger",
}


def compose_length(m: Migration) -> None:
    """How long the run is, and on what it runs."""
    if (m.get("max_steps") or -1) > 0:
        m.put("trainer.max_steps", int(m.get("max_steps")), "max_steps")
        m.refuse("num_train_epochs", "max_steps decides, as in TRL.")
    else:
        m.needs_nothing("max_steps")
        epochs = float(m.get("num_train_epochs"))
        m.put("trainer.max_epochs", max(1, math.ceil(epochs)), "num_train_epochs")
        if epochs != int(epochs):
            m.refuse("num_train_epochs", f"{epochs:g}: epochs are whole here. Set trainer.max_steps for less.")
    if m.get("use_cpu"):
        m.put("trainer.accelerator", "cpu", "use_cpu")
    m.needs_nothing("use_cpu", "fp16", "bf16", "stage")
    if m.get("fp16"):
        m.refuse("fp16", "16-bit floats need loss scaling, which GRPO here does not do. bf16-mixed is written.")
    uses_bf16 = m.get("bf16") is not False or m.get("fp16")
    m.put("trainer.precision", "bf16-mixed" if uses_bf16 else "32-true", "bf16")
    if m.devices > 1:
        m.put("trainer.devices", m.devices)
    if m.get("resume_from_checkpoint"):
        if m.get("resume_from_checkpoint") is True:
            m.put("ckpt_path", "last", "resume_from_checkpoint")
        else:
            reason = "TRL's checkpoints cannot be resumed here: give their weights as model.model_name_or_path."
            m.refuse("resume_from_checkpoint", reason)
    m.needs_nothing("resume_from_checkpoint")


def compose_strategy(m: Migration) -> None:
    """How a model is spread."""
    if m.get("ddp_find_unused_parameters"):
        m.put("trainer.strategy", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters")
    for key in ("fsdp", "deepspeed"):
        if not m.get(key):
            continue
        m.put("trainer.strategy", "fsdp2", key)
        notes = ["The rest of its settings, offloading among them, is not read."] if key == "deepspeed" else []
        if not m.get("use_vllm"):
            notes.append("It needs an engine beside the policy: use_vllm: true, or VLLMColocate as model.generator.")
        if notes:
            m.refuse(key, " ".join(["Written: trainer.strategy fsdp2.", *notes]))
    m.needs_nothing("ddp_find_unused_parameters", "fsdp", "deepspeed")


def compose_logging(m: Migration) -> None:
    """How often what is logged, and where to."""
    steps = m.get("logging_steps")
    strategy = _choice(m, "logging_strategy", "steps")
    if strategy != "steps":
        m.refuse("logging_strategy", f"{strategy}: trainer.log_every_n_steps counts steps; every step is written.")
    elif steps and steps >= 1:
        m.put("trainer.log_every_n_steps", int(steps), "logging_steps", "logging_strategy")
    elif steps is not None:
        m.refuse("logging_steps", f"{steps:g} is a share of the run: trainer.log_every_n_steps is a number of steps.")
    targets = m.get("report_to")
    targets = [targets] if isinstance(targets, str) else targets or []
    names = [name for name in targets if name in LOGGERS]
    for name in targets:
        if name not in LOGGERS and name not in ("none", "all"):
            m.refuse("report_to", f"Lightning has no logger for {name}: name a class path in trainer.logger.")
    if names:
        m.put("trainer.logger", [_logger(m, name) for name in names], "report_to")
    else:
        for key in ("run_name", "project"):
            m.refuse(key, "Only loggers such as wandb have names; the run's own is trainer.default_root_dir.")
    m.needs_nothing("report_to")


def _logger(m: Migration, name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"save_dir": m.get("output_dir") or "runs/grpo"}
    if name == "mlflow":
        arguments = {"tracking_uri": None}
    if m.get("run_name"):
        arguments["run_name" if name == "mlflow" else "name"] = m.get("run_name")
        m.mapped.setdefault("run_name", []).append("trainer.logger")
    if m.get("project") and name == "wandb":
        arguments["project"] = m.get("project")
        m.mapped.setdefault("project", []).append("trainer.logger")
    elif m.get("project"):
        m.refuse("project", f"{name} has no such argument.")
    return {"class_path": LOGGERS[name], "init_args": arguments}


def compose_checkpoints(m: Migration) -> None:
    """When checkpoints are written, and how many stay."""
    strategy, steps, limit = _choice(m, "save_strategy", "steps"), m.get("save_steps"), m.get("save_total_limit")
    if strategy == "epoch":
        m.put("checkpoint.every_n_epochs", 1, "save_strategy")
        m.put("checkpoint.every_n_train_steps", 0, "save_strategy")
        m.refuse("save_steps", "save_strategy: epoch decides, as in TRL.")
    elif strategy != "steps":
        m.refuse("save_strategy", f"{strategy}: checkpoints are always written; set checkpoint.every_n_train_steps.")
        m.refuse("save_steps", f"save_strategy: {strategy} decides, as in TRL.")
    elif steps >= 1:
        m.put("checkpoint.every_n_train_steps", int(steps), "save_steps", "save_strategy")
    else:
        m.refuse("save_steps", f"{steps:g} is a share of the run: checkpoint.every_n_train_steps is a number of steps.")
        m.needs_nothing("save_strategy")
    if limit is None or limit == 1:
        m.put("checkpoint.save_top_k", -1 if limit is None else 1, "save_total_limit")
    else:
        m.put("checkpoint.monitor", "step", "save_total_limit")
        m.put("checkpoint.mode", "max", "save_total_limit")
        m.put("checkpoint.save_top_k", int(limit), "save_total_limit")


def compose_evaluation(m: Migration) -> None:
    """When held-out prompts are scored."""
    strategy, steps = _choice(m, "eval_strategy", "no"), m.get("eval_steps")
    if strategy == "steps":
        every = steps if steps is not None else m.get("logging_steps")
        if every >= 1:
            m.put("trainer.val_check_interval", int(every), "eval_steps", "eval_strategy")
            m.put("trainer.check_val_every_n_epoch", None, "eval_strategy")
        else:
            m.refuse("eval_steps", f"{every:g} is a share of the run: trainer.val_check_interval counts GRPO steps.")
            m.needs_nothing("eval_strategy")
        return
    if strategy == "epoch":
        m.put("trainer.check_val_every_n_epoch", 1, "eval_strategy")
    elif "eval_strategy" in m.given:
        m.put("trainer.limit_val_batches", 0, "eval_strategy")
    if steps is not None:
        m.refuse("eval_steps", f"eval_strategy: {strategy} decides, as in TRL.")
    m.needs_nothing("eval_steps")


def _choice(m: Migration, key: str, default: str) -> str:
    """The value of one of transformers' enumerations; YAML 1.1 reads a bare no as False."""
    value = m.get(key, default)
    return "no" if value is False else str(getattr(value, "value", value))
