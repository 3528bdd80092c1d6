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
    "trackio": "grpo_lightning.trackers.TrackioLogger",
}
TAKEN: dict[str, dict[str, str]] = {
    "wandb": {"run_name": "name", "project": "project"},
    "tensorboard": {"run_name": "name"},
    "mlflow": {"run_name": "run_name"},
    "comet_ml": {"project": "project"},
    "trackio": {"run_name": "name", "project": "project", "trackio_space_id": "space_id"},
}
"""Logger -> their key -> the logger's argument."""
FURTHER: dict[str, dict[str, str]] = {
    "wandb": {"wandb_entity": "entity", "wandb_run_group": "group"},
    "comet_ml": {"run_name": "name"},
    "trackio": {"trackio_bucket_id": "bucket_id"},
}
"""As ``TAKEN``, for arguments that a logger hands on without naming them."""
KEYS = tuple(dict.fromkeys(key for taken in (*TAKEN.values(), *FURTHER.values()) for key in taken))
OWN_FOLDER = ("wandb", "tensorboard")
"""Loggers that write into the run's folder; the others have a place of their own or an address in the environment."""

_LIGHTNING = "{0} has a logger for Lightning of its own: name {1} in trainer.logger."
_BY_MLFLOW = (
    "{0} is reached through MLflow: lightning.pytorch.loggers.MLFlowLogger in trainer.logger, with its tracking_uri."
)
WITHOUT = {
    "all": "It means whatever is installed: name the loggers in trainer.logger.",
    "azure_ml": _BY_MLFLOW.format("Azure ML"),
    "clearml": "ClearML collects what TensorBoard writes once clearml.Task.init was called, in a callback of yours.",
    "codecarbon": "CodeCarbon is no logger: start its EmissionsTracker in a callback of yours.",
    "dagshub": _BY_MLFLOW.format("DagsHub"),
    "dvclive": _LIGHTNING.format("DVCLive", "dvclive.lightning.DVCLiveLogger"),
    "flyte": "Flyte shows what its task writes: call `fit` inside the task and show metrics.csv.",
    "kubeflow": "Kubeflow is told the progress by transformers alone.",
    "neptune": "Neptune's service has ended: name another logger, such as grpo_lightning.trackers.TrackioLogger.",
    "swanlab": _LIGHTNING.format("SwanLab", "swanlab.integration.pytorch_lightning.SwanLabLogger"),
}
"""What else transformers reports to, and what to do instead."""
UNKNOWN = "{name} is no tracker that transformers knows: name a logger's class path in trainer.logger."


def compose_logging(m: Migration) -> None:
    """Interval and loggers."""
    _interval(m)
    targets = m.get("report_to")
    targets = [targets] if isinstance(targets, str) else targets or []
    names = [name for name in targets if name in LOGGERS]
    for name in targets:
        if name not in LOGGERS and name != "none":
            m.refuse("report_to", WITHOUT.get(name, UNKNOWN.format(name=name)))
    if names:
        m.put("trainer.logger", [_logger(m, name) for name in names], "report_to")
    for key in KEYS:
        if not any(key in TAKEN[name] | FURTHER.get(name, {}) for name in names):
            takers = [name for name in LOGGERS if key in TAKEN[name] | FURTHER.get(name, {})]
            m.refuse(key, f"It belongs to {' and '.join(takers)}, and report_to names none of these.")
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
    arguments: dict[str, Any] = {"save_dir": m.get("output_dir") or "runs/grpo"} if name in OWN_FOLDER else {}
    further: dict[str, Any] = {}
    for taken, into in ((TAKEN[name], arguments), (FURTHER.get(name, {}), further)):
        for key, argument in taken.items():
            if m.get(key):
                into[argument] = m.get(key)
                m.mapped.setdefault(m.written.get(key, key), []).append("trainer.logger")
    logger: dict[str, Any] = {"class_path": LOGGERS[name], "init_args": arguments}
    return logger | ({"dict_kwargs": further} if further else {})


def choice(m: Migration, key: str, default: str) -> str:
    """The value of one of transformers' enumerations; YAML 1.1 reads a bare no as False."""
    value = m.get(key, default)
    return "no" if value is False else str(getattr(value, "value", value))
