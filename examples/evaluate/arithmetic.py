"""The quickstart's held-out problems as a task of Inspect.

inspect eval examples/evaluate/arithmetic.py --model hf/local -M model_path=exported -M device=cpu -M do_sample=false

From the project's folder. ``accuracy`` is the strict held-out accuracy that the run printed at its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import Sample, json_dataset
from inspect_ai.scorer import pattern
from inspect_ai.solver import generate

HELD_OUT = Path(__file__).parents[2] / "assets" / "quickstart" / "heldout.jsonl"


def sample(row: dict[str, Any]) -> Sample:
    """A row of the run's dataset."""
    return Sample(input=row["prompt"][0]["content"], target=row["ground_truth"])


@task
def arithmetic() -> Task:
    """Right where the number inside ``<answer>`` is the result, as the run's strict reward reads it."""
    return Task(
        dataset=json_dataset(str(HELD_OUT), sample_fields=sample),
        solver=generate(max_tokens=64),
        scorer=pattern(r"^(?:(?!<answer>).)*<answer>([^<]*)</answer>"),
    )
