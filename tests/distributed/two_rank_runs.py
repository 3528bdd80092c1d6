"""Runs of the command line on two ranks of this machine's CPU, as people start them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml
from runs import write_prompts

from grpo_lightning.commands.settings.ranks import LAUNCHERS

ROOT = Path(__file__).parents[2]
NOTES_THE_IMPORT = """
import os, sys, time

def note(event, args):
    if event == "import" and args[0] == "torch":
        path = "torch" + os.environ.get("LOCAL_RANK", "0")
        if not os.path.exists(path):
            with open(path, "w") as file:
                file.write(str(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")))

sys.addaudithook(note)
"""
"""A module that Python imports as it starts: notes when torch's import begins, in the unit of a process's start."""
NEVER_ENDS = """
import time
from pathlib import Path

def digits(completions, **columns):
    Path("reached").touch()
    time.sleep(300)
"""
"""Rewards that a run waits for."""


def write_run(folder: Path, model_dir: Path, rewards: str, sections: dict[str, dict[str, Any]]) -> None:
    """``run.yaml``, and the reward ``digits`` of its ``rewards_here.py`` beside it.

    Args:
        folder: Where both go.
        model_dir: Of the policy.
        rewards: Source.
        sections: What else the config says.
    """
    (folder / "rewards_here.py").write_text(rewards)
    config: dict[str, dict[str, Any]] = {
        "trainer": {"accelerator": "cpu", "strategy": "ddp", "enable_progress_bar": False},
        "model": {
            "model_name_or_path": str(model_dir),
            "rewards": ["rewards_here.digits"],
            "generator": "TransformersGenerator",
            "num_generations": 2,
            "max_completion_length": 4,
        },
        "data": {"dataset": str(write_prompts(folder / "train.jsonl")), "batch_size": 2},
    }
    merged = {name: config.get(name, {}) | sections.get(name, {}) for name in config | sections}
    (folder / "run.yaml").write_text(yaml.safe_dump(merged))


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a shell that no launcher has started, in which the rewards of ``folder`` are found."""
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    path = os.pathsep.join([str(folder), str(ROOT)])
    return inherited | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def trained(run: Path) -> dict[str, torch.Tensor]:
    """What the run's last checkpoint holds."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
