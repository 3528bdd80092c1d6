"""Splits and slices of them: ``train``, ``train[:1000]``, ``train+validation[:10%]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets

from grpo_lightning.datamodules.sources.rows import Rows


def split_names(split: str) -> list[str]:
    """The splits that an expression takes rows from.

    Example:
        >>> split_names("train[:1000] + test")
        ['train', 'test']
    """
    return [part.partition("[")[0].strip() for part in split.split("+")]


def check_split(split: str, known: Sequence[str], place: str) -> None:
    """Raises ValueError, in one line, if one of the expression's splits is not among the known ones."""
    missing = [name for name in split_names(split) if name not in known]
    if missing:
        found = f"only {', '.join(map(str, known))}" if known else "none at all"
        raise ValueError(
            f"{place} has no split {missing[0]!r}, {found}. Name one of them as split of the dataset, or in data.split or "
            "data.eval_split."
        )


def select_split(tables: Mapping[str, Callable[[], Any]], split: str, place: str) -> Rows | datasets.Dataset:
    """The rows of a split expression.

    Args:
        tables: Reads a split, by its name; only those that the expression names are read.
        split: The expression.
        place: What has these splits; errors quote it.

    Raises:
        ValueError: If a split is missing, or the expression cannot be read.
    """
    check_split(split, list(tables), place)
    read = {name: tables[name]() for name in dict.fromkeys(split_names(split))}
    if split in read:
        return read[split]
    spec = split.replace(" ", "")
    try:
        slices = datasets.ReadInstruction.from_spec(spec).to_absolute({name: len(rows) for name, rows in read.items()})
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{place}: split={split!r} cannot be read: {error}.") from error
    parts = [read[one.splitname].select(range(one.from_, max(one.from_, one.to))) for one in slices]
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, datasets.Dataset) for part in parts):
        return datasets.concatenate_datasets(parts)
    return Rows(row for part in parts for row in part)
