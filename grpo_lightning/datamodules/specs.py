"""The forms in which a config or a script names one or several datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_lightning.datamodules.data_config import ENTRY_KEYS

DatasetSpec = str | dict[str, Any] | list[dict[str, Any]]
"""A name or path, an entry as in dataset_info.json, or the rows themselves."""

EvalSpec = DatasetSpec | dict[str, DatasetSpec] | list[DatasetSpec]
"""One dataset, or several by name or in a list."""

UNNAMED = ""
"""What a single evaluation dataset is called."""


def is_rows(spec: Any) -> bool:
    """Whether the rows themselves were given (a list of rows or a datasets.Dataset) rather than where to find them."""
    return not isinstance(spec, str | dict)


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
    names = [one if isinstance(one, str) else str(one.get("hf_hub_url") or one.get("file_name")) for one in spec]
    if len(set(names)) < len(names):
        raise ValueError(f"data.eval_dataset lists {names}, not all different. Give each a name: name: dataset.")
    return dict(zip(names, spec, strict=True))
