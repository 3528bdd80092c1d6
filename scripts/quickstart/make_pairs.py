"""Write the pairs of configs/chain: a right working of a problem beside one of the class that comes to a wrong answer.

python scripts/quickstart/make_pairs.py     # writes assets/chain/pairs.jsonl and heldout_pairs.jsonl, in a second
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from demonstrations import CLASS, RIGHT, demonstrate
from make_model import asked
from task import sample_problem

from assets import ROOT, write_rows

ROWS, HELD_OUT_ROWS = 1024, 128


def pairs(count: int, held_out: bool) -> Iterator[dict[str, Any]]:
    """Rows with prompt, chosen and rejected."""
    rng = random.Random("held-out pairs" if held_out else "pairs")
    while count:
        problem = sample_problem(rng, held_out)
        right, wrong = demonstrate(problem, rng, RIGHT), demonstrate(problem, rng, CLASS)
        if not wrong.endswith(f">{problem.result}</answer>"):
            yield {**asked(problem), "chosen": right, "rejected": wrong}
            count -= 1


if __name__ == "__main__":
    write_rows(pairs(ROWS, False), ROOT / "assets" / "chain" / "pairs.jsonl")
    write_rows(pairs(HELD_OUT_ROWS, True), ROOT / "assets" / "chain" / "heldout_pairs.jsonl")
