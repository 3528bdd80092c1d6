"""How many ranks a command will have on this node, as far as its settings tell before torch can count GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from grpo_lightning.commands.module_choice import with_one_option
from grpo_lightning.commands.settings.check import config_files, options_given
from grpo_lightning.commands.settings.yaml_file import read_entries

LAUNCHERS = ("LOCAL_RANK", "RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "JSM_NAMESPACE_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Set where something else starts the ranks, one process each: torchrun, SLURM, LSF, MPI, or whoever numbers them."""


def ranks_here(arguments: Sequence[str]) -> int:
    """What ``trainer.devices`` asks of this node; 1 where a launcher starts the ranks, or where it cannot be told.

    Args:
        arguments: After the command's name, without mistakes.
    """
    if any(name in os.environ for name in LAUNCHERS):
        return 1
    words = with_one_option(arguments)
    entries = chain(*(read_entries(config) for config in config_files(words)), options_given(words))
    given = {entry.name: entry.value for entry in entries}
    if isinstance(given.get("trainer"), str):  # a file of its own
        return 1
    accelerator = given.get("trainer.accelerator", "auto")
    gpus = visible_gpus() if accelerator in ("auto", "gpu", "cuda") else 0
    return min(devices_asked(given.get("trainer.devices", "auto"), gpus), gpus or os.cpu_count() or 1)


def devices_asked(devices: Any, gpus: int) -> int:
    """A number of ranks, as Lightning reads ``trainer.devices``.

    Args:
        devices: A number, a list of indices, either of them as text, or auto.
        gpus: What auto and -1 stand for; without any they are 1, as on a CPU.

    Example:
        >>> [devices_asked(devices, gpus=8) for devices in (2, [0, 3], "4", "1,2,5", "3,", "auto", -1)]
        [2, 2, 4, 3, 1, 8, 8]
    """
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    if text in ("auto", "-1"):
        return max(1, gpus)
    if "," in text:
        return len([index for index in text.split(",") if index.strip()])
    return int(text) if text.isdecimal() else 1


def visible_gpus(device_files: Path = Path("/dev")) -> int:
    """NVIDIA's that a process started from here may use, by the system's files: nothing is imported or initialised.

    Args:
        device_files: Where the system has them.
    """
    present = len(list(device_files.glob("nvidia[0-9]*")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not present or chosen is None:
        return present
    return len([device for device in chosen.split(",") if device.strip() not in ("", "-1")])
