"""The values of report_to, as Lightning's loggers: which there are, and what they take."""

from __future__ import annotations

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
