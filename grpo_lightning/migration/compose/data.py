"""Datasets, and the columns that prompts are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_lightning.migration.migration import Migration

SPLITS = ("dataset_config", "dataset_train_split", "dataset_test_split")
FORMATS = ("json", "csv", "parquet", "text", "arrow")
"""What datasets.load_dataset calls files of no repository."""


def compose_data(m: Migration) -> None:
    """Which rows are trained and evaluated on, and how they become prompts."""
    for key in ("dataset", "eval_dataset"):
        if m.get(key):
            m.put(f"data.{key}", m.get(key), key)
        m.needs_nothing(key)
    _datasets(m)
    _streaming(m)
    _prompts(m)
    _longest_prompt(m)


def evaluates(m: Migration) -> bool:
    """Whether held-out prompts are scored during the run."""
    strategy = m.get("eval_strategy", "no")
    return str(getattr(strategy, "value", strategy)) not in ("no", "False", "None")


def _datasets(m: Migration) -> None:
    m.needs_nothing("dataset_name")
    mixture = m.get("dataset_mixture") or {}
    key, listed = ("datasets", m.get("datasets")) if m.get("datasets") else ("dataset_mixture", mixture.get("datasets"))
    if listed:
        _listed(m, key, list(listed))
        if m.get("dataset_name"):
            m.refuse("dataset_name", f"{key} decides, as in TRL.")
    elif m.get("dataset_name"):
        _named(m)
    else:
        for split in SPLITS:
            m.refuse(split, "Without dataset_name it names nothing.")
    m.needs_nothing("datasets", "dataset_mixture")


def _named(m: Migration) -> None:
    subset = m.get("dataset_config")
    subset = subset[0] if isinstance(subset, list) and len(subset) == 1 else subset
    entry = _entry(str(m.get("dataset_name")), subset)
    m.put("data.dataset", {**entry, "split": m.get("dataset_train_split", "train")}, "dataset_name", *SPLITS[:2])
    if evaluates(m):
        held_out = {**entry, "split": m.get("dataset_test_split", "test")}
        m.put("data.eval_dataset", held_out, "dataset_name", SPLITS[2])
    else:
        m.refuse(SPLITS[2], "eval_strategy: no decides, as in TRL.")


def _listed(m: Migration, key: str, entries: list[Mapping[str, Any]]) -> None:
    ours = [_listed_entry(entry) for entry in entries]
    if len(ours) == 1:
        m.put("data.dataset", ours[0], key)
    else:
        m.put("data.datasets", _by_name([{**entry, "weight": "rows"} for entry in ours]), key)
        m.say(
            key,
            "Written: data.datasets, weighed by rows. Each step has its share of every dataset; TRL shuffles the rows of all.",
        )
    for split in SPLITS:
        m.refuse(split, f"{key} names a split for each of its datasets.")
    if evaluates(m):
        m.refuse(key, "Held-out rows are not among them: name some in data.eval_dataset.")


def _listed_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    files = entry.get("data_files")
    name = str(entry.get("path") or entry.get("id"))
    if name in FORMATS and isinstance(files, str):
        name = files
    ours = _entry(name, entry.get("name") or entry.get("config"))
    if entry.get("data_dir"):
        ours["folder"] = entry["data_dir"]
    return {**ours, "split": entry.get("split") or "train"}


def _by_name(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Datasets under the last part of their place, with a number where several have the same."""
    named: dict[str, dict[str, Any]] = {}
    for entry in entries:
        stem = Path(str(entry.get("hf_hub_url") or entry.get("file_name"))).stem
        same = sum(name.rpartition("-")[0] == stem or name == stem for name in named)
        named[f"{stem}-{same + 1}" if same else stem] = entry
    return named


def _streaming(m: Migration) -> None:
    for key in ("streaming", "dataset_streaming"):
        if m.get(key):
            if m.config.get("data.datasets"):
                m.refuse(key, "Several datasets are read before training, so that each step has its share of each.")
            elif int(m.get("max_steps") or -1) <= 0:
                m.refuse(key, "Without max_steps nobody knows how long an epoch of a stream is; rows are read first.")
            else:
                m.put("data.streaming", True, key)
        m.needs_nothing(key)


def _entry(name: str, subset: Any) -> dict[str, Any]:
    is_local = name.startswith((".", "/", "~")) or Path(name).suffix in (".json", ".jsonl", ".csv", ".parquet")
    return {"file_name" if is_local else "hf_hub_url": name, **({"subset": subset} if subset else {})}


def _prompts(m: Migration) -> None:
    """open-r1's script makes a conversation of one column, with a system prompt before it."""
    column, system = m.get("dataset_prompt_column"), m.get("system_prompt")
    if column:
        m.put("data.converter_args.prompt_key", column, "dataset_prompt_column")
        m.put("data.converter_args.conversational", True, "dataset_prompt_column")
    if system:
        m.put("data.converter_args.system_prompt", system, "system_prompt")
    m.needs_nothing("dataset_prompt_column", "system_prompt")


def _longest_prompt(m: Migration) -> None:
    """The longest prompt, which only older versions of TRL have."""
    limit = m.get("max_prompt_length")
    if limit:
        m.put("data.max_prompt_length", int(limit), "max_prompt_length")
        m.say(
            "max_prompt_length",
            f"Written: data.max_prompt_length {int(limit)}. Longer prompts are left out; older TRL cut off their start.",
        )
    m.needs_nothing("max_prompt_length")
