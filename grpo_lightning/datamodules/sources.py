"""Where rows come from: a key of dataset_info.json, a local file or directory, or the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from grpo_lightning.datamodules.data_config import check_entry, load_data_config

FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
DEFAULT_SPLIT = "train"  # also what the datasets library calls the rows of a single local file


@dataclass(frozen=True)
class DataSource:
    """A dataset that has been found but not read."""

    name: str
    """As the config says it; errors quote it."""
    path: str | None = None
    """Local file or directory."""
    hub: str | None = None
    """Name on the hub."""
    subset: str | None = None
    folder: str | None = None
    split: str = DEFAULT_SPLIT
    num_samples: int | None = None
    converter: str | None = None
    """What the entry of dataset_info.json asks for."""
    converter_args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        place = self.path or f"{self.hub}{f' ({self.subset})' if self.subset else ''}"
        return place if self.path and self.split == DEFAULT_SPLIT else f"{place}, split {self.split}"

    def load(self, load_from_cache_file: bool = True) -> datasets.Dataset:
        """Reads the rows.

        Args:
            load_from_cache_file: False reads the file again, or downloads again, instead of using the cached copy.

        Raises:
            ValueError: If there is no such dataset or split, or it has no rows or cannot be parsed.
        """
        mode = "reuse_dataset_if_exists" if load_from_cache_file else "force_redownload"
        if self.path and Path(self.path).is_file() and not Path(self.path).stat().st_size:
            raise ValueError(f"{self} has no rows.")
        try:
            rows = self._read(mode)
        except StopIteration as error:  # the datasets library looks for the format in a directory of empty files
            raise ValueError(f"{self} has no rows.") from error
        except DatasetGenerationError as error:
            raise ValueError(f"{self} cannot be read: {error.__cause__ or error}.") from error
        except (OSError, ValueError) as error:  # missing on the hub, offline, or unknown subset or split
            if self.path and "corresponds to no data" in str(error):  # lines without rows, or a head without lines
                raise ValueError(f"{self} has no rows.") from error
            raise ValueError(f"{self} cannot be loaded: {error}") from error
        if not isinstance(rows, datasets.Dataset):
            raise ValueError(f"{self} is {type(rows).__name__}, not one table of rows. Name a split.")
        return rows if self.num_samples is None else rows.select(range(min(self.num_samples, len(rows))))

    def _read(self, mode: str) -> Any:
        if self.path is None:
            return datasets.load_dataset(
                self.hub, self.subset, data_dir=self.folder, split=self.split, download_mode=mode
            )
        path = Path(self.path)
        if path.is_file():
            file_format = FILE_FORMATS[path.suffix.lower()]
            return datasets.load_dataset(file_format, data_files=self.path, split=self.split, download_mode=mode)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():  # written by save_to_disk
            saved = datasets.load_from_disk(self.path)
            return saved[self.split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(self.path, split=self.split, download_mode=mode)


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
        return _from_entry(str(spec.get("hf_hub_url") or spec.get("file_name")), spec, split)
    if spec in data_config:
        return _from_entry(spec, data_config[spec], split)
    path = Path(spec).expanduser()
    if path.exists() or path.suffix.lower() in FILE_FORMATS or spec.startswith((".", "/", "~")):
        return _local(spec, path, split=split or DEFAULT_SPLIT)
    if "/" not in spec or spec.count("/") > 1:
        keys = ", ".join(sorted(data_config)) or "none"
        raise ValueError(
            f"Dataset {spec!r} is not a key of dataset_info.json (keys: {keys}), no file {path.resolve()} exists, and "
            "a hub dataset is named owner/name. Correct data.dataset, or point data.dataset_info to the right file."
        )
    return DataSource(name=spec, hub=spec, split=split or DEFAULT_SPLIT)


def _from_entry(name: str, entry: dict[str, Any], split: str | None) -> DataSource:
    check_entry(name, entry)
    settings: dict[str, Any] = {
        "split": split or entry.get("split") or DEFAULT_SPLIT,
        "num_samples": entry.get("num_samples"),
        "converter": entry.get("converter"),
        "converter_args": {**entry.get("columns", {}), **entry.get("converter_args", {})},
    }
    if "file_name" in entry:
        return _local(name, Path(entry["file_name"]).expanduser(), **settings)
    hub = {"hub": entry["hf_hub_url"], "subset": entry.get("subset"), "folder": entry.get("folder")}
    return DataSource(name=name, **hub, **settings)


def _local(name: str, path: Path, **settings: Any) -> DataSource:
    if not path.exists():
        raise FileNotFoundError(f"Dataset {name!r}: there is no file or directory {path.resolve()}.")
    if path.is_file() and path.suffix.lower() not in FILE_FORMATS:
        raise ValueError(f"Dataset {name!r}: {path} is not one of {', '.join(FILE_FORMATS)}.")
    return DataSource(name=name, path=str(path), **settings)


def get_dataset(
    name: str | dict[str, Any],
    split: str | None = None,
    dataset_info: str | Path | None = None,
    load_from_cache_file: bool = True,
) -> datasets.Dataset:
    """The raw rows of a dataset, before conversion.

    Args:
        name: A key of dataset_info.json, a local file (JSON, JSONL, Parquet, CSV) or directory, ``owner/name`` on the
            hub, or an entry as in dataset_info.json. Code that comes with a dataset is never run.
        split: Its split; by default the entry's, else ``train``, as a local file is called too.
        dataset_info: Path of dataset_info.json.
        load_from_cache_file: False reads or downloads again instead of using the cached copy.

    Raises:
        FileNotFoundError, ValueError: Saying which of the above was tried.
    """
    source = find_dataset(name, split, load_data_config(dataset_info))
    return source.load(load_from_cache_file)
