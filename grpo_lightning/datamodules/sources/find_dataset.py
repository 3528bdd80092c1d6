"""What a name of a dataset means: a key of dataset_info.json, local files, the Hugging Face hub, a maker of tasks, or
rows that were given from Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from grpo_lightning.datamodules.sources.dataset_info import ENTRY_KEYS, check_entry, load_data_config
from grpo_lightning.datamodules.sources.files import (
    FILE_FORMATS,
    check_directory,
    did_you_mean_path,
    file_format,
    is_pattern,
    matching_files,
)
from grpo_lightning.datamodules.sources.row_stream import RowStream
from grpo_lightning.datamodules.sources.source import DEFAULT_SPLIT, DataSource, Table
from grpo_lightning.datamodules.sources.specs import DatasetSpec, entry_name, is_rows, is_rows_by_split
from grpo_lightning.datamodules.sources.splits import check_split
from grpo_lightning.errors import did_you_mean

Source: TypeAlias = "DataSource | GivenRows"


def find_dataset(
    spec: str | dict[str, Any],
    split: str | None = None,
    data_config: dict[str, dict[str, Any]] | None = None,
) -> DataSource:
    """Decides what a name means, without reading rows: a key, else a local path, else a hub dataset.

    Args:
        spec: The name, or an entry as in dataset_info.json.
        split: Overrides the entry's split.
        data_config: Entries of dataset_info.json.

    Raises:
        FileNotFoundError: If it looks like a path and nothing is there.
        ValueError: If the name is unknown, the entry wrong or the file of a kind that cannot be read.
    """
    data_config = data_config or {}
    if isinstance(spec, dict):
        return _from_entry(entry_name(spec), spec, split)
    if spec in data_config:
        return _from_entry(spec, data_config[spec], split)
    path = Path(spec).expanduser()
    if path.exists() or file_format(path) or is_pattern(str(path)) or spec.startswith((".", "/", "~")):
        return _local(spec, path, split=split or DEFAULT_SPLIT)
    if "/" not in spec or spec.count("/") > 1:
        keys = ", ".join(sorted(data_config)) or "none"
        raise ValueError(
            f"Dataset {spec!r} is not a key of dataset_info.json (keys: {keys}), no file {path.resolve()} exists, and "
            "a hub dataset is named owner/name. Correct data.dataset, or point data.dataset_info to the right file."
            f"{did_you_mean(spec, data_config) or did_you_mean_path(path)}"
        )
    return DataSource(name=spec, hub=spec, split=split or DEFAULT_SPLIT)


def _from_entry(name: str, entry: dict[str, Any], split: str | None) -> DataSource:
    check_entry(name, entry)
    is_made = "reasoning_gym" in entry
    # What is made has these columns; a converter of the entry's own knows others.
    columns = {"prompt_key": "question", "ground_truth_key": "answer"} if is_made and not entry.get("converter") else {}
    settings: dict[str, Any] = {
        "split": split or entry.get("split") or DEFAULT_SPLIT,
        "rows_field": entry.get("field"),
        "num_samples": entry.get("num_samples"),
        "converter": entry.get("converter"),
        "converter_args": {**columns, **entry.get("columns", {}), **entry.get("converter_args", {})},
    }
    if is_made:
        own = {key: value for key, value in entry.items() if key == "reasoning_gym" or key not in ENTRY_KEYS}
        return DataSource(name=name, reasoning_gym=own, **settings)
    if "file_name" in entry:
        return _local(name, Path(entry["file_name"]).expanduser(), **settings)
    hub = {"hub": entry["hf_hub_url"], "subset": entry.get("subset"), "folder": entry.get("folder")}
    return DataSource(name=name, **hub, **settings)


def _local(name: str, path: Path, **settings: Any) -> DataSource:
    if is_pattern(str(path)):
        files = matching_files(str(path))
        if not files:
            raise FileNotFoundError(
                f"Dataset {name!r}: no file matches {path.absolute()}. Correct the pattern or the folder."
            )
    elif not path.exists():
        where = f"there is no file or directory {path.resolve()}."
        raise FileNotFoundError(f"Dataset {name!r}: {where}{did_you_mean_path(path)}")
    else:
        files = [] if path.is_dir() else [str(path)]
        check_directory(name, path)
    formats = {file_format(file) for file in files}
    if None in formats:
        unknown = next(file for file in files if file_format(file) is None)
        raise ValueError(
            f"Dataset {name!r}: {unknown} is not one of {', '.join(FILE_FORMATS)} (text also as .gz, .bz2 or .xz)."
        )
    if len(formats) > 1:
        raise ValueError(
            f"Dataset {name!r}: {path} matches files of several formats ({', '.join(sorted(map(str, formats)))})."
        )
    if settings.get("rows_field") is not None and formats != {"json"}:
        raise ValueError(f"Dataset {name!r}: field has no effect on {path}, which is not a JSON file.")
    return DataSource(name=name, path=str(path), **settings)


def find_source(spec: DatasetSpec, split: str | None = None, dataset_info: str | Path | None = None) -> Source:
    """Where a dataset's rows are, those given from Python included; the errors are ``find_dataset``'s.

    Args:
        spec: The rows, a name or an entry.
        split: Overrides the entry's split.
        dataset_info: Path of dataset_info.json.
    """
    if isinstance(spec, list) or is_rows(spec):
        return GivenRows(spec, split)
    return find_dataset(spec, split, load_data_config(dataset_info))


def get_dataset(
    name: str | dict[str, Any],
    split: str | None = None,
    dataset_info: str | Path | None = None,
    load_from_cache_file: bool = True,
) -> Table:
    """The raw rows of a dataset, before conversion: a ``datasets.Dataset``, or ``Rows`` of JSON and tables of text.

    Args:
        name: A key of dataset_info.json, a local file (JSON, JSONL, Parquet, Arrow, CSV, TSV), directory or pattern,
            ``owner/name`` on the hub, or an entry as in dataset_info.json. Code that comes with a dataset is never run.
        split: Its split; by default the entry's, else ``train``, as a local file is called too.
        dataset_info: Path of dataset_info.json.
        load_from_cache_file: False reads or downloads again instead of using the cached copy.

    Raises:
        FileNotFoundError, ValueError: Saying which of the above was tried.
    """
    source = find_dataset(name, split, load_data_config(dataset_info))
    return source.load(load_from_cache_file)


@dataclass(frozen=True)
class GivenRows:
    """What ``DataSource`` is to a name; nothing says how to convert them but the settings of all data."""

    given: Any
    """A list of rows, a ``datasets.Dataset``, a stream, or one of them by split."""
    split: str | None = None
    converter: None = None
    converter_args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "data given from Python"

    def load(self, load_from_cache_file: bool = True) -> Any:
        """The rows, held against what rows are.

        Raises:
            ValueError: If there is no such split, it is a stream, or iterating gives something else than rows: a pandas DataFrame
                gives the names of its columns.
        """
        rows = self._of_split()
        kind = type(rows).__name__
        if not hasattr(rows, "__len__"):
            raise ValueError(
                f"{self} is a stream ({kind}), which only training reads. Set data.streaming for data.dataset; elsewhere use a "
                "datasets.Dataset or a list, such as list(stream.take(10000))."
            )
        first: Any = next(iter(rows), {})
        if not isinstance(first, Mapping):
            raise ValueError(
                f"{self} is a {kind} that gives {first!r:.80}, of type {type(first).__name__}, where a row is a dictionary such "
                "as {'prompt': ..., 'ground_truth': ...}. Give a list of those, or a datasets.Dataset; of a pandas DataFrame "
                "frame.to_dict('records')."
            )
        return rows

    def stream(self) -> RowStream:
        """The rows, read as they are needed."""
        return RowStream(self._of_split(), str(self))

    def _of_split(self) -> Any:
        if self.split is not None and not {"[", "+"}.isdisjoint(self.split):
            raise ValueError(
                f"{self} has whole splits, and {self.split!r} is a part of one, or several. Give the part itself, such as "
                "dataset.select(range(1000)), or several that datasets.concatenate_datasets has put together."
            )
        if not is_rows_by_split(self.given):
            return self.given
        split = self.split or DEFAULT_SPLIT
        check_split(split, list(map(str, self.given)), f"{self} ({type(self.given).__name__})")
        return self.given[split]
