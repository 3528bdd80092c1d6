"""Writes down what a run ran on, for the report and for whoever compares runs later."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from grpo_lightning.metrics.diagnostics import skipped_if_not_written
from grpo_lightning.version import __version__

PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "vllm", "trl")


def system_info(world_size: int = 1) -> dict[str, Any]:
    """Python, packages, processors and memory of this machine; nothing that names it or its user."""
    versions = {"grpo-lightning": __version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in devices],
        "cuda": torch.version.cuda,
        "ranks": world_size,
        "packages": versions,
    }


class SystemRecord(Callback):
    """Writes ``system.json`` into trainer.default_root_dir when training starts."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes on the first rank."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "system.json"
            with skipped_if_not_written(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(system_info(trainer.world_size), indent=2) + "\n", encoding="utf-8")
