"""The table of verdicts: what the accuracy reward must say of answers of all kinds, judged by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("verdicts.tsv")


@dataclass(frozen=True)
class Verdict:
    """One line of the table, for one mode."""

    kind: str
    mode: str
    reference: str
    answer: str
    """As the table has it: without tags, or a whole completion after ``> ``."""
    expected: float
    why: str

    @property
    def completion(self) -> str:
        """What the model wrote."""
        text = _unescaped(self.answer)
        return text[2:] if text.startswith("> ") else f"<answer>{text}</answer>"


def read_verdicts() -> list[Verdict]:
    """Every line of the table, once for each of its modes."""
    verdicts: list[Verdict] = []
    kind = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("##"):
            kind = line.removeprefix("##").strip()
        elif line and not line.startswith("#"):
            modes, reference, answer, expected, why = line.split("\t")
            reference = _unescaped(reference)
            verdicts += [Verdict(kind, mode, reference, answer, float(expected), why) for mode in modes.split(",")]
    return verdicts


def _unescaped(cell: str) -> str:
    # "\n" is a line break unless it begins a command such as \neq.
    cell = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), cell)
    return re.sub(r"\\n(?![a-z])", "\n", cell)
