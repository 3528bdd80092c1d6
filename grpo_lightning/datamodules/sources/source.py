"""Reading the rows of a dataset from where it is: local files, the Hugging Face hub, or a maker of tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets.exceptions import DatasetGenerationError

from grpo_lightning.datamodules.sources.files import TEXT_FORMATS, file_format, is_pattern, matching_files
from grpo_lightning.datamodules.sources.hub_index import HubFiles, remember, remembered
from grpo_lightning.datamodules.sources.reasoning_gym import make_tasks
from grpo_lightning.datamodules.sources.row_stream import RowStream
from grpo_lightning.datamodules.sources.rows import Rows
from grpo_lightning.datamodules.sources.splits import check_split, select_split, split_names
from grpo_lightning.datamodules.sources.text_files import UnreadableFileError, read_text_files

DEFAULT_SPLIT = "train"  # also what the datasets library calls the rows of a single local file

Table: TypeAlias = "Rows | datasets.Dataset"


@dataclass(frozen=True)
class DataSource:
    """A dataset that has been found but not read."""

    name: str
    """As the config says it; errors quote it."""
    path: str | None = None
    """Local file, directory or pattern."""
    hub: str | None = None
    """Name on the hub."""
    reasoning_gym: dict[str, Any] | None = None
    """Name and settings of a maker of tasks."""
    subset: str | None = None
    folder: str | None = None
    rows_field: str | None = None
    """Key of the list of rows inside a JSON object."""
    split: str = DEFAULT_SPLIT
    num_samples: int | None = None
    converter: str | None = None
    """What the entry of dataset_info.json asks for."""
    converter_args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.reasoning_gym is not None:
            return f"reasoning_gym {self.reasoning_gym['reasoning_gym']}"
        place = f"{self._place}{f' ({self.subset})' if self.subset else ''}"
        return place if self.path and self.split == DEFAULT_SPLIT else f"{place}, split {self.split}"

    @property
    def _place(self) -> str:
        return self.path or str(self.hub)

    def load(self, load_from_cache_file: bool = True) -> Table:
        """Reads the rows.

        Args:
            load_from_cache_file: False reads the file again, or downloads again, instead of using the cached copy.
                JSON and tables of text are read anew in any case.

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
        except UnreadableFileError as error:
            raise ValueError(f"{self} cannot be read: {error}.") from error
        except DatasetGenerationError as error:
            raise ValueError(f"{self} cannot be read: {error.__cause__ or error}.") from error
        except (OSError, ValueError) as error:  # missing on the hub, offline, or unknown subset
            if self.path and "corresponds to no data" in str(error):  # a head without lines
                raise ValueError(f"{self} has no rows.") from error
            raise ValueError(f"{self} cannot be loaded: {error}") from error
        if not len(rows):
            raise ValueError(f"{self} has no rows.")
        return rows if self.num_samples is None else rows.select(range(min(self.num_samples, len(rows))))

    def _read(self, mode: str) -> Table:
        if self.reasoning_gym is not None:
            return Rows(make_tasks(self.reasoning_gym, self.num_samples))
        files = self.files()
        if files:
            return self._of_files({DEFAULT_SPLIT: files}, str(file_format(files[0])), mode)
        path = Path(self.path or "")
        if self.path and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
            return select_split(self._saved_tables(), self.split, self.path)  # written by save_to_disk
        on_the_hub = (self.hub, self.subset, self.folder)
        try:
            builder = datasets.load_dataset_builder(
                self.path or self.hub, self.subset, data_dir=self.folder, download_mode=mode
            )
        except ConnectionError:  # HF_HUB_OFFLINE=1, or no network
            known = remembered(on_the_hub) if self.hub and mode == "reuse_dataset_if_exists" else None
            if known is None:
                raise
            return self._of_files(known.splits, known.file_format, mode)
        urls = builder.config.data_files
        if builder.name in TEXT_FORMATS and urls:
            check_split(self.split, list(map(str, urls)), self._place)
            wanted = {str(name): urls[name] for name in urls if str(name) in split_names(self.split)}
            download = datasets.DownloadConfig(force_download=mode == "force_redownload", token=builder.token)
            local = datasets.DownloadManager(download_config=download).download(wanted)
            if self.hub:
                splits = {split: list(map(str, paths)) for split, paths in local.items()}
                remember(on_the_hub, HubFiles(builder.name, splits))
            return self._of_files(local, builder.name, mode)
        builder.download_and_prepare(download_mode=mode)
        tables = {str(name): partial(builder.as_dataset, split=name) for name in builder.info.splits or {}}
        return select_split(tables, self.split, self._place)

    def stream(self) -> RowStream:
        """The rows, read as they are needed.

        Raises:
            ValueError: If there is no such dataset or split.
        """
        if self.reasoning_gym is not None:
            return RowStream(self.load(), str(self))
        if "[" in self.split:
            raise ValueError(
                f"{self} cannot be streamed: how long a split is, is known once it is read. Name whole splits, and keep the first "
                "rows with num_samples."
            )
        names, files = split_names(self.split), self.files()
        try:
            if files and file_format(files[0]) in TEXT_FORMATS:
                check_split(self.split, [DEFAULT_SPLIT], self._place)
                return self._lines(files * len(names))
            if files:
                rows = datasets.load_dataset(
                    str(file_format(files[0])), data_files=files, split=self.split, streaming=True
                )
            else:
                builder = datasets.load_dataset_builder(self.path or self.hub, self.subset, data_dir=self.folder)
                urls = builder.config.data_files or {}
                check_split(self.split, list(map(str, urls)) or names, self._place)
                if builder.name in TEXT_FORMATS and urls:
                    return self._lines([file for name in names for file in urls[name]])
                rows = builder.as_streaming_dataset(split=self.split)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self} cannot be streamed: {error}") from error
        return RowStream(rows if self.num_samples is None else rows.take(self.num_samples), str(self))

    def _lines(self, files: list[str]) -> RowStream:
        return RowStream(lambda: islice(read_text_files(files, self.rows_field), self.num_samples), str(self))

    def files(self) -> list[str]:
        """The local files that hold the rows; none for a directory or a hub dataset."""
        if self.path is None or Path(self.path).is_dir():
            return []
        return matching_files(self.path) if is_pattern(self.path) else [self.path]

    def _of_files(self, files: dict[str, list[str]], file_format: str, mode: str) -> Table:
        def read(paths: list[str]) -> Table:
            if file_format in TEXT_FORMATS:
                return Rows(read_text_files(paths, self.rows_field))
            data = datasets.load_dataset(file_format, data_files=paths, split=DEFAULT_SPLIT, download_mode=mode)
            assert isinstance(data, datasets.Dataset)
            return data

        tables: dict[str, Callable[[], Table]] = {name: partial(read, paths) for name, paths in files.items()}
        return select_split(tables, self.split, self._place)

    def _saved_tables(self) -> dict[str, Callable[[], Table]]:
        saved = datasets.load_from_disk(self.path)
        if isinstance(saved, datasets.Dataset):
            names = dict.fromkeys([DEFAULT_SPLIT, str(saved.split or DEFAULT_SPLIT)])
            return {name: lambda: saved for name in names}
        return {str(name): partial(saved.__getitem__, name) for name in saved}
