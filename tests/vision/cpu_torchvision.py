"""torchvision's image functions beside a torch for the CPU, for the processors of the Qwen-VL families and SmolVLM.

The packages that an index gives are built for CUDA: their compiled operators do not load here, and the import ends because two
of them have no name. The functions on images are plain torch. `make install-vllm` puts the package into a folder of its own,
where no other import of transformers finds it; only processes that ask for it here see it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import importlib, sys
from tests.vision.cpu_torchvision import import_torchvision
kept = import_torchvision()
module, *arguments = sys.argv[1:]
importlib.import_module(module).main(*arguments)
"""
FOLDER = Path(sys.prefix) / "torchvision"
"""Where `make install-vllm` puts it; sys.prefix is the virtual environment."""
OPERATORS = ("nms", "qnms")


def is_installed() -> bool:
    """Whether it is there."""
    return (FOLDER / "torchvision").is_dir()


def import_torchvision() -> torch.library.Library:
    """Makes it importable in this process; what comes back has to be kept."""
    library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.path.append(str(FOLDER))
    __import__("torchvision")
    return library


def main_with_torchvision(module: str, *arguments: str) -> None:
    """``main`` of a module of the tests, in a process of its own where torchvision is."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CHILD, module, *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert ended.returncode == 0, ended.stderr[-3000:]
