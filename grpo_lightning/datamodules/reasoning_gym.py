"""Tasks that reasoning-gym makes from a seed (github.com/open-thought/reasoning-gym, arXiv:2505.24760)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
        task = tasks[index]
        maker = {"name": name, "settings": how, "question": task["question"]}
        yield {key: task[key] for key in ("question", "answer", "metadata")} | {COLUMN: maker}


def task_maker(name: str, settings: Mapping[str, Any]) -> Any:
    """The dataset of reasoning-gym, which makes tasks and scores answers.

    Raises:
        ImportError, ValueError: As for ``make_tasks``.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ImportError(
            f"data.dataset={{reasoning_gym: {name}}} needs a package: pip install 'grpo-lightning[reasoning-gym]' "
            f"({error})."
        ) from error
    if name not in DATASETS:
        raise ValueError(f"reasoning_gym={name!r} is not a dataset of reasoning-gym. Known are: {', '.join(DATASETS)}.")
    try:
        return create_dataset(name, **settings)
    except (TypeError, ValueError, AssertionError) as error:  # of its config class, and of that class's validate()
        known = ", ".join(key for key in DATASETS[name][1].__dataclass_fields__ if key != "seed")
        raise ValueError(f"reasoning_gym={name}: {error}. Its settings are: seed, {known}.") from error
