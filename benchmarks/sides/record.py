"""What a side hands to the benchmark: its steps as they were measured, and what it ran on."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from sides.clock import PhaseClock, resident_bytes

PACKAGES = ("torch", "transformers", "trl", "lightning", "grpo-lightning", "vllm", "peft", "accelerate", "liger-kernel")


def save_record(path: str, program: str, clock: PhaseClock, model: nn.Module | None) -> None:
    """Writes the record as JSON."""
    assert model is not None
    record = {
        "program": program,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if clock.cuda else platform.machine() + " cpu",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes_before_training": clock.bytes_before,
        "reserved_bytes": torch.cuda.memory_reserved() if clock.cuda else resident_bytes(),
        "steps": clock.steps,
    }
    Path(path).write_text(json.dumps(record) + "\n", encoding="utf-8")


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that matter here; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
