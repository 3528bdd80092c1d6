"""The score that reasoning-gym gives an answer to one of its tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.rewards.base import RewardContractError
from grpo_lightning.rewards.completion_reward import OF_THE_CALL, CompletionReward
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.text.extraction import lenient_answer

_NUMBER = re.compile(r"[-+]?[0-9][0-9,]*(?:\.[0-9]+)?")


@register_reward("reasoning_gym")
@dataclass
class ReasoningGymReward(CompletionReward):
    r"""What the maker of the task says of the answer, in [0, 1]: many tasks have several right answers.

    The answer is the text in the last ``<answer>``, else in the last ``\boxed{}``, else the last number where a number is
    asked for, else all of the text behind ``</think>``. Some makers read an answer as a formula with sympy, which evaluates what a model wrote:
    scoring runs in a process of its own.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
    """

    isolation = "process"

    _makers: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def score(self, completion: str, **row: Any) -> float | None:
        """What the maker of the row's task says; None for rows of other datasets.

        Args:
            completion: The text that the policy wrote.
            row: ``reasoning_gym`` (maker and question of the task), and ``answer`` and ``metadata``, which the maker keeps.

        Raises:
            RewardContractError: If the tasks are not of reasoning-gym.
        """
        self.check_columns([name for name in row if name not in OF_THE_CALL])
        maker, answer = row["reasoning_gym"], row.get("answer")
        if maker is None:
            return None
        task = {"question": maker["question"], "answer": answer, "metadata": row.get("metadata")}
        found = answer_in(completion, bool(_NUMBER.fullmatch(str(answer))))
        return float(self._maker(maker).score_answer(found, task))

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuses data without a task of reasoning-gym."""
        if "reasoning_gym" not in columns:
            raise RewardContractError(
                f"Reward '{self.name}' scores the tasks of {{reasoning_gym: ...}}, and the data has the columns "
                f"{', '.join(columns) or 'none'}. Use another reward."
            )

    def _maker(self, maker: dict[str, Any]) -> Any:
        key = json.dumps([maker["name"], maker["settings"]], sort_keys=True, default=str)
        if key not in self._makers:
            self._makers[key] = task_maker(maker["name"], {**maker["settings"], "seed": 0, "size": 1})
        return self._makers[key]


def answer_in(text: str, is_number: bool) -> str:
    """The part of a completion that is its answer.

    Args:
        text: What the policy wrote.
        is_number: Whether a number is asked for.

    Example:
        >>> answer_in("<think>7?</think><answer>Zoey</answer>", False), answer_in("that makes 42.", True)
        ('Zoey', '42')
        >>> answer_in("Zoey is 7", False)
        'Zoey is 7'
    """
    text = text.rpartition("</think>")[2]
    found = lenient_answer(text) if is_number or "<answer>" in text or "\\boxed" in text else None
    return text.strip() if found is None else found


def task_maker(name: str, settings: Mapping[str, Any]) -> Any:
    """The dataset of reasoning-gym, which makes tasks and scores answers.

    Raises:
        ImportError: If the package is missing.
        ValueError: If there is no such dataset, or it does not take these settings.
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
