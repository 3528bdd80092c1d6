"""dataset_info.json: names for datasets, so that configs say ``data.dataset: gsm8k_train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATASET_INFO = "dataset_info.json"

ENTRY_KEYS = {
    "hf_hub_url": "name of a dataset on the Hugging Face hub",
    "file_name": "local file, directory or pattern (shards/*.jsonl), relative to dataset_info.json",
    "reasoning_gym": "name of a dataset of reasoning-gym, which makes its rows; further keys are its settings",
    "field": "key of the list of rows inside a JSON object",
    "subset": "configuration of a hub dataset",
    "folder": "directory inside a hub dataset",
    "split": "split, slices such as train[:1000] included",
    "num_samples": "keep the first so many rows",
    "converter": "name or import path of its converter",
    "converter_args": "arguments of the converter",
    "columns": "further arguments of the converter: which column is the prompt, the query, the ground_truth",
}
"""What an entry may hold, and what it means. Exactly one of ``PLACES`` is needed."""

PLACES = ("hf_hub_url", "file_name", "reasoning_gym")


def load_data_config(path: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """The entries of a dataset_info.json, with the paths in them made absolute.

    Args:
        path: The file, or its directory. None looks for ``dataset_info.json`` and ``data/dataset_info.json`` under the
            working directory and returns no entries if there is neither.

    Raises:
        FileNotFoundError: If a path was given and there is nothing.
        ValueError: If the file is not a JSON object of objects.
    """
    file = _located(path)
    if file is None:
        return {}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{file} must map each dataset's name to its settings ({', '.join(ENTRY_KEYS)}).")
    for entry in entries.values():
        if isinstance(entry.get("file_name"), str):
            entry["file_name"] = str(file.parent / entry["file_name"])
    return entries


def _located(path: str | Path | None) -> Path | None:
    if path is None:
        found = [candidate for candidate in (Path(DATASET_INFO), Path("data", DATASET_INFO)) if candidate.is_file()]
        return found[0].resolve() if found else None
    file = Path(path).expanduser()
    file = file / DATASET_INFO if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"data.dataset_info={str(path)!r}: there is no file {file.resolve()}.")
    return file.resolve()


def check_entry(name: str, entry: dict[str, Any]) -> None:
    """Raises ValueError if an entry has keys that would be ignored, or does not say where its rows are."""
    places = [key for key in PLACES if key in entry]
    if len(places) != 1:
        raise ValueError(f"Dataset {name!r} needs exactly one of {', '.join(PLACES)}, got {entry}.")
    unknown = sorted(set(entry) - set(ENTRY_KEYS))
    if unknown and places != ["reasoning_gym"]:  # which has settings of its own
        raise ValueError(
            f"Dataset {name!r} has unknown settings: {', '.join(unknown)}. Known are: {', '.join(ENTRY_KEYS)}."
        )
    for key in ("subset", "folder"):
        if key in entry and "hf_hub_url" not in entry:
            raise ValueError(f"Dataset {name!r}: {key} belongs to a hub dataset and has no effect on {places[0]}.")
    for key in ("field", "split"):
        if key in entry and "reasoning_gym" in entry:
            raise ValueError(f"Dataset {name!r}: {key} has no effect on reasoning_gym, which makes its rows.")
