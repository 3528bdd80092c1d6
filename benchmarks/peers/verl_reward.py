"""verl's form of a reward, loaded by path. Standard library only."""

from __future__ import annotations

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, **further: Any) -> float:
    """Share of characters with an even code: cheap, and different for each completion of a group."""
    return sum(ord(character) % 2 == 0 for character in solution_str) / max(1, len(solution_str))
