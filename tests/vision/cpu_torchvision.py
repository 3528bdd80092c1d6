"""torchvision's image functions beside a torch for the CPU, for the processors of the Qwen-VL families and SmolVLM.

The packages that an index gives are built for CUDA: their compiled operators do not load here, and the import ends because two
of them have no name. The functions on images are plain torch. `make install-vllm` puts the package into a folder of its own,
where no other import of transformers finds it; only processes that ask for it here see it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

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
