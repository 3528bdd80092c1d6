"""What a side hands to the benchmark: its steps as they were measured, and what it ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sides.clock import PhaseClock, resident_bytes

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "lightning",
    "grpo-lightning",
    "vllm",
    "peft",
    "accelerate",
    "liger-kernel",
    "bitsandbytes",
)


def save_record(path: str, program: str, clock: PhaseClock, model: nn.Module | None, **further: Any) -> None:
    """Writes the record as JSON, in place of an earlier one; ``further`` is what else is known of the run."""
    assert model is not None
    record = {
        "program": program,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if clock.cuda else platform.machine() + " cpu",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes_before_training": clock.bytes_before,
        "reserved_bytes": torch.cuda.memory_reserved() if clock.cuda else resident_bytes(),
        "steps": clock.steps,
        **further,
    }
    part = Path(path + ".part")
    part.write_text(json.dumps(record) + "\n", encoding="utf-8")
    part.replace(path)


def versions() -> dict[str, str | None]:
    """Of this project (a commit), Python, and the packages that matter here; None for what is not there."""
    return {"commit": _commit(), "python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _commit() -> str | None:
    """What is measured; a + says that files were changed since.

    $MEASURED_COMMIT comes first: a tree that was copied to another machine has no repository, or one of another commit.
    """
    if os.environ.get("MEASURED_COMMIT"):
        return os.environ["MEASURED_COMMIT"]
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
