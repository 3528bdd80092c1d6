"""How often what is logged, and where to."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.compose.steps import TOTAL, in_steps, updates
from grpo_lightning.migration.migration import Migration

LOGGERS = {
    "wandb": "lightning.pytorch.loggers.WandbLogger",
    "tensorboard": "lightning.pytorch.loggers.TensorBoardLogger",
    "mlflow": "lightning.pytorch.loggers.MLFlowLogger",
    "comet_ml": "lightning.pytorch.loggers.CometLogger",
}
WANDB_ONLY = {"wandb_entity": "entity", "wandb_run_group": "group"}


def compose_logging(m: Migration) -> None:
    """Interval and loggers."""
    _interval(m)
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
    if "wandb" not in names:
        for key in WANDB_ONLY:
            m.refuse(key, "report_to does not name wandb.")
    m.needs_nothing("report_to")


def _interval(m: Migration) -> None:
    steps = m.get("logging_steps")
    strategy = choice(m, "logging_strategy", "steps")
    if strategy != "steps":
        m.refuse("logging_strategy", f"{strategy}: trainer.log_every_n_steps counts steps; every step is written.")
    elif steps:
        every = in_steps(m, float(steps))
        if every is None:
            m.refuse("logging_steps", f"{steps:g} is a share of the run: {TOTAL}. Until then every step is logged.")
        else:
            m.put("trainer.log_every_n_steps", max(1, every // updates(m)), "logging_steps", "logging_strategy")
    m.needs_nothing("logging_strategy", "logging_steps")


def _logger(m: Migration, name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"save_dir": m.get("output_dir") or "runs/grpo"}
    if name == "mlflow":
        arguments = {"tracking_uri": None}
    taken = {"run_name": "run_name" if name == "mlflow" else "name"} | (
        {"project": "project"} if name == "wandb" else {}
    )
    for key, argument in taken.items():
        if m.get(key):
            arguments[argument] = m.get(key)
            m.mapped.setdefault(m.written.get(key, key), []).append("trainer.logger")
    if m.get("project") and name != "wandb":
        m.refuse("project", f"{name} has no such argument.")
    further = {argument: m.get(key) for key, argument in WANDB_ONLY.items() if m.get(key) and name == "wandb"}
    for key, argument in WANDB_ONLY.items():
        if argument in further:
            m.mapped.setdefault(key, []).append("trainer.logger")
    logger: dict[str, Any] = {"class_path": LOGGERS[name], "init_args": arguments}
    return logger | ({"dict_kwargs": further} if further else {})


def choice(m: Migration, key: str, default: str) -> str:
    """The value of one of transformers' enumerations; YAML 1.1 reads a bare no as False."""
    value = m.get(key, default)
    return "no" if value is False else str(getattr(value, "value", value))
