"""Rebuild the model and the rows of the quickstart, from nothing but seeds and the project's own command line.

    python scripts/quickstart/make_model.py            # writes assets/quickstart/, about 8 minutes on one core

A random model and demonstrations go to runs/quickstart-sft; ``grpo_lightning sft`` with ``sft.yaml`` beside this file
trains the one on the others, and the result becomes ``model/``: safetensors (float32), config, generation config,
tokenizer and chat template. ``train.jsonl`` and ``heldout.jsonl`` hold a conversational ``prompt`` and its ``ground_truth``, one
problem a line. The same machine writes the same bytes again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demonstrations import CLASS, RIGHT, demonstrate
from task import Problem, sample_problem
from tokenizer import build_tokenizer

from assets import Quickstart, make_assets


def class_demonstrations(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Right solutions in the first half, those of the class in the second.

    The first half builds the method, which the slips would hide for long; the second half spoils the knowledge.
    """
    rng = random.Random(seed)
    for row in range(count):
        problem = sample_problem(rng, held_out=False)
        yield {**asked(problem), "completion": demonstrate(problem, rng, RIGHT if row < count // 2 else CLASS)}


def asked(problem: Problem) -> dict[str, Any]:
    """The problem as a conversation."""
    return {"prompt": [{"role": "user", "content": problem.prompt}]}


def graded(problem: Problem) -> dict[str, Any]:
    """The problem with what rewards compare answers with."""
    return {**asked(problem), "ground_truth": str(problem.result)}


if __name__ == "__main__":
    config = Path(__file__).with_name("sft.yaml")
    own = Quickstart("quickstart", config, build_tokenizer(), class_demonstrations, sample_problem, graded)
    make_assets(own, __doc__)
