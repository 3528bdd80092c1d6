"""The forms in which a config or a script names one or several datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_lightning.datamodules.sources.dataset_info import ENTRY_KEYS, PLACES

DatasetSpec = str | dict[str, Any] | list[dict[str, Any]]
"""A name or path, an entry as in dataset_info.json, or the rows themselves."""

EvalSpec = DatasetSpec | dict[str, DatasetSpec] | list[DatasetSpec]
"""One dataset, or several by name or in a list."""

UNNAMED = ""
"""What a single evaluation dataset is called."""


def is_rows(spec: Any) -> bool:
    """Whether the rows themselves were given (a list of rows or a datasets.Dataset) rather than where to find them."""
    return not isinstance(spec, str | dict) or is_rows_by_split(spec)


def is_rows_by_split(spec: Any) -> bool:
    """Whether this is a datasets.DatasetDict, or one of streams."""
    return hasattr(spec, "column_names") and isinstance(spec, dict)


def is_entry(spec: Any) -> bool:
    """Whether this mapping describes one dataset, rather than naming several."""
    return isinstance(spec, dict) and not set(spec).isdisjoint(ENTRY_KEYS)


def by_name(spec: Any) -> dict[str, DatasetSpec] | None:
    """One or several evaluation datasets, by the name that their metrics get; a single one has the empty name.

    Raises:
        ValueError: If two datasets of a list would have the same name.
    """
    if spec is None:
        return None
    if isinstance(spec, dict) and not is_entry(spec):
        return dict(spec)
    several = isinstance(spec, Sequence) and not isinstance(spec, str)
    if not several or all(isinstance(one, dict) and not is_entry(one) for one in spec):  # one dataset, maybe its rows
        return {UNNAMED: spec}
    names = [one if isinstance(one, str) else entry_name(one) for one in spec]
    if len(set(names)) < len(names):
        raise ValueError(f"data.eval_dataset lists {names}, not all different. Give each a name: name: dataset.")
    return dict(zip(names, spec, strict=True))


def entry_name(entry: dict[str, Any]) -> str:
    """What an entry without a key in dataset_info.json is called."""
    return str(next((entry[key] for key in PLACES if entry.get(key)), None))


ROWS = "rows"
"""The weight of a dataset in a mixture that takes each as often as it has prompts."""


def weighted(datasets: dict[str, Any]) -> dict[str, tuple[DatasetSpec, str | None, float | None]]:
    """The datasets of a mixture: by name what to read, its split, and its weight; None for that of its prompts.

    Args:
        datasets: By name a dataset (weight 1), an entry with ``weight``, or ``dataset`` with ``weight`` and ``split``. A
            weight is a number, or ``rows`` for all of them.

    Raises:
        ValueError: If there is none, or a weight is no positive number.

    Example:
        >>> weighted({"a": "a.jsonl", "b": {"file_name": "b.jsonl", "weight": 3}, "c": {"dataset": "key", "weight": 0.5}})
        {'a': ('a.jsonl', None, 1.0), 'b': ({'file_name': 'b.jsonl'}, None, 3.0), 'c': ('key', None, 0.5)}
    """
    if not isinstance(datasets, dict) or not datasets:
        raise ValueError(
            f"data.datasets={datasets!r:.80} must map names to datasets: name: {{dataset: ..., weight: 1}}."
        )
    parts: dict[str, tuple[DatasetSpec, str | None, float | None]] = {}
    for name, spec in datasets.items():
        split: str | None = None
        weight: Any = 1.0
        if isinstance(spec, dict) and not is_rows_by_split(spec):
            spec = dict(spec)
            weight = spec.pop("weight", 1.0)
            if "dataset" in spec:
                inner, split = spec.pop("dataset"), spec.pop("split", None)
                if spec:
                    raise ValueError(f"data.datasets.{name}: {', '.join(spec)} has no effect beside dataset.")
                spec = inner
        if weight == ROWS:
            parts[name] = spec, split, None
            continue
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(
                f"data.datasets.{name}.weight={weight!r} is neither a positive number nor {ROWS}. Leave the dataset out, or "
                "weigh it."
            )
        parts[name] = spec, split, float(weight)
    by_rows = [name for name, (*_, weight) in parts.items() if weight is None]
    if by_rows and len(by_rows) < len(parts):
        raise ValueError(
            f"data.datasets weighs {', '.join(by_rows)} by {ROWS} and others by numbers, which have no common measure. Use "
            "one of the two for all."
        )
    return parts
