"""Commands of a benchmark and what they start, forks of a process that has torchvision and all that they import."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import torch

from tests.forked_python import ForkedPython
from tests.frozen_imports import freeze_imports
from tests.vision.cpu_torchvision import ROOT

IMPORTED_BY_A_SIDE = (
    "grpo_lightning.commands.cli",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "trl.trainer.grpo_trainer",
)


def main(script: str, *commands: str) -> None:
    """Runs the script with the arguments of each command, a list in JSON, one after the other."""
    for name in IMPORTED_BY_A_SIDE:
        import_module(name)
    torch.set_num_threads(1)  # which a side asks for by a variable that is read at import
    freeze_imports()
    subprocess.Popen = ForkedPython  # type: ignore[misc]
    for command in commands:
        subprocess.run([sys.executable, script, *json.loads(command)], cwd=ROOT, check=True)
