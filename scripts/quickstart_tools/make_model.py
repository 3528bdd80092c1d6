"""Rebuild the model and the rows of the quickstart with tools, as ``scripts/quickstart/make_model.py`` does for the other one.

python scripts/quickstart_tools/make_model.py       # writes assets/quickstart_tools/, about 8 minutes on one core
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "quickstart"))
from task import Problem, sample_problem, turns
from tokenizer import build_tokenizer

from assets import Quickstart, make_assets


def class_demonstrations(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Turns of pupils who call both tools in the first half, of the class in the second."""
    rng, halves = random.Random(seed), count // 2

    def endless(is_class: bool) -> Iterator[dict[str, Any]]:
        while True:
            yield from turns(sample_problem(rng, held_out=False), rng, is_class)

    yield from islice(endless(False), halves)
    yield from islice(endless(True), count - halves)


def graded(problem: Problem) -> dict[str, Any]:
    """The problem with what rewards compare answers with."""
    return {"prompt": [{"role": "user", "content": problem.prompt}], "ground_truth": str(problem.result)}


if __name__ == "__main__":
    config = Path(__file__).with_name("sft.yaml")
    own = Quickstart("quickstart_tools", config, build_tokenizer(), class_demonstrations, sample_problem, graded)
    make_assets(own, __doc__)
