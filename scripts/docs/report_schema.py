"""Writes the table of the completions' columns into docs/report.md.

python scripts/docs/report_schema.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # also without an installed package

from grpo_lightning.callbacks.completion_rows import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "report.md"


def render(page: str) -> str:
    """The page with the table between its marks renewed."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in COLUMNS.items()]
    lines.append("| `rewards/<name>` | double | Each reward before its weight; null where it gave none. |")
    table = "\n".join(lines)
    mark = re.compile(r"(<!-- schema -->\n).*?(<!-- /schema -->)", re.DOTALL)
    return mark.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
