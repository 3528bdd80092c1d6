"""Tasks that reasoning-gym makes from a seed (github.com/open-thought/reasoning-gym, arXiv:2505.24760)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_lightning.rewards.kinds.reasoning_gym import task_maker
from grpo_lightning.seeds import derive_seed

DEFAULT_SIZE = 500
COLUMN = "reasoning_gym"
"""What the reward of the same name needs to score an answer: the maker of the task, and the task."""


def make_tasks(settings: Mapping[str, Any], num_samples: int | None = None) -> list[dict[str, Any]]:
    """Rows with ``question``, ``answer``, ``metadata`` and the column that the reward ``reasoning_gym`` reads.

    Task i of a dataset is a function of its settings, its seed and i. reasoning-gym itself draws task i of seed s from s + i,
    so that neighbouring seeds share all but one of their tasks; here, other seeds give other tasks.

    Args:
        settings: ``reasoning_gym`` (the dataset's name), ``seed`` and ``size`` (0 and 500 by default), and those of its
            config class.
        num_samples: At most so many.

    Raises:
        ImportError: If the package is missing.
        ValueError: If there is no such dataset, or it does not take these settings.
    """
    name = str(settings["reasoning_gym"])
    own = {key: value for key, value in settings.items() if key not in ("reasoning_gym", "seed")}
    own["size"] = int(own.get("size", DEFAULT_SIZE))
    seed = derive_seed("reasoning_gym", settings.get("seed", 0)) % 2**31  # some makers seed NumPy with it
    task_maker(name, {**own, "seed": seed})  # refuses what cannot be, in this process
    count = own["size"] if num_samples is None else min(num_samples, own["size"])
    how = {key: value for key, value in own.items() if key != "size"}
    tasks = _made_apart({"name": name, "settings": {**own, "seed": seed}, "count": count})
    return [
        {key: task[key] for key in ("question", "answer", "metadata")}
        | {COLUMN: {"name": name, "settings": how, "question": task["question"]}}
        for task in tasks
    ]


def _made_apart(order: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tasks from a process with a fixed order of sets, from which some makers draw: each rank's would be another."""
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("task_process.py"))],
        input=pickle.dumps(order),
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"reasoning_gym={order['name']} cannot make its tasks: {''.join(last)}")
    return pickle.loads(done.stdout)


def check_other_tasks(training: Mapping[str, Any], held_out: Mapping[str, Any]) -> None:
    """Raises ValueError if a dataset is evaluated on the tasks that it is trained on.

    Args:
        training, held_out: (dataset, split) by name, as configs say them.
    """

    def makers(specs: Mapping[str, Any]) -> set[tuple[str, Any]]:
        entries = (spec for spec, _ in specs.values() if isinstance(spec, dict) and "reasoning_gym" in spec)
        return {(str(entry["reasoning_gym"]), entry.get("seed", 0)) for entry in entries}

    for name, seed in sorted(makers(training) & makers(held_out)):
        raise ValueError(
            f"data.eval_dataset makes the tasks of reasoning_gym={name} from seed={seed}, as data.dataset does: they would be "
            "the same tasks. Give one of them another seed."
        )
