"""Tasks that reasoning-gym makes from a seed (github.com/open-thought/reasoning-gym, arXiv:2505.24760)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from grpo_lightning.rewards.reasoning_gym import task_maker
from grpo_lightning.seeds import derive_seed

DEFAULT_SIZE = 500
COLUMN = "reasoning_gym"
"""What the reward of the same name needs to score an answer: the maker of the task, and the task."""


def make_tasks(settings: Mapping[str, Any], num_samples: int | None = None) -> Iterator[dict[str, Any]]:
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
    tasks = task_maker(name, {**own, "seed": seed})
    how = {key: value for key, value in own.items() if key != "size"}
    for index in range(own["size"] if num_samples is None else min(num_samples, own["size"])):
        with _seeded(seed, index):
            task = tasks[index]
        maker = {"name": name, "settings": how, "question": task["question"]}
        yield {key: task[key] for key in ("question", "answer", "metadata")} | {COLUMN: maker}


@contextmanager
def _seeded(*parts: int) -> Iterator[None]:
    """Python's generator seeded inside the block: some makers draw from it beside their own."""
    state = random.getstate()
    random.seed(derive_seed("reasoning_gym", *parts))
    yield
    random.setstate(state)


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
