"""Writes examples of what the accuracy reward accepts into docs/grader.md, from the table that the tests check.

python scripts/docs/verdicts.py
"""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "rewards")]  # also without an installed package

from verdicts import Verdict, read_verdicts  # noqa: E402 - the path is set above

PAGE = ROOT / "docs" / "grader.md"
KINDS = (
    *("Full stops and marks around the answer", "Thousands", "Powers of ten", "Fractions and mixed numbers"),
    *("Per cent, money and units", "Values that only contain the number", "Where the answer stands", "Several values"),
    *("Intervals and inequalities", "Equations", "Formulas", "Words, choices, dates", "Denials and relations"),
)
"""Of the table, those that show what a grader has to decide."""
SHOWN = {1.0: 5, 0.0: 4}
"""Lines of each kind: right answers and wrong ones."""


def render(page: str) -> str:
    """The page with the examples between its marks renewed."""
    in_math = [verdict for verdict in read_verdicts() if verdict.mode == "math" and verdict.kind in KINDS]
    tables = "\n\n".join(_table(kind, list(verdicts)) for kind, verdicts in groupby(in_math, lambda one: one.kind))
    mark = re.compile(r"(<!-- verdicts -->\n).*?(<!-- /verdicts -->)", re.DOTALL)
    return mark.sub(lambda found: f"{found[1]}{tables}\n{found[2]}", page)


def _table(kind: str, verdicts: list[Verdict]) -> str:
    lines = [f"## {kind}", "", "| verdict | reference | answer | because |", "|---|---|---|---|"]
    for value, count in SHOWN.items():
        chosen = [verdict for verdict in verdicts if verdict.expected == value and verdict.answer.strip("> ")][:count]
        word = "right" if value else "wrong"
        lines += [f"| {word} | {_code(one.reference)} | {_code(one.answer)} | {_cell(one.why)} |" for one in chosen]
    return "\n".join(lines)


def _code(text: str) -> str:
    shown = _cell(text.removeprefix("> ").strip())
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
