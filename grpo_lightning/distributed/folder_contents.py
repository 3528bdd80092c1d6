"""What is in a checkpoint that is a directory, read without running code that it names: torch's own reader unpickles anything."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from grpo_lightning.distributed import checkpoint_values  # noqa: F401  it tells torch.load which objects it may make
from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError

CONTENTS = ".metadata"
"""Which tensors and values a checkpoint has, and in which of its files each lies."""

KNOWN = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "device"),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),  # of Python 3.13
    "collections": ("OrderedDict",),
}
"""What a list of contents is made of, by module: plain data, and torch's dtypes."""


class _ContentsUnpickler(pickle.Unpickler):
    """Makes a list of contents, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses what could act."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint")


def contents_fault(folder: Path) -> str | None:
    """Why the list of contents cannot be read; None where it can be."""
    try:
        _contents(folder)
    except Exception as error:  # unpickling a foreign file raises anything
        return f"{CONTENTS} is not what was written ({' '.join(str(error).split())[:200]})"
    return None


def read_into(state: dict[str, Any], folder: Path) -> None:
    """Puts saved tensors and values in the place of those in ``state``; on all ranks together.

    Raises:
        CheckpointNotReadableError: If something is not there, does not fit, or names code.
    """
    try:
        load(state, storage_reader=_FolderReader(folder), planner=_ValuePlanner())
    except CheckpointException as error:  # the same on every rank
        reason, _ = next(iter(error.failures.values()))
        words = " ".join(str(reason).split())[:200]
        raise CheckpointNotReadableError(f"The checkpoint {folder} cannot be used ({words}).") from error


def read_rest(path: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """What is neither weights nor optimizer states.

    Args:
        path: Of its file.
        weights_only: False to let it name code, as only its user can ask for.

    Raises:
        CheckpointNotReadableError: If it names code, or is something else.
    """
    try:
        rest: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only is not False)
    except Exception as error:  # unpickling a foreign file raises anything
        words = " ".join(str(error).split())[:200]
        raise CheckpointNotReadableError(f"{path} is not of a checkpoint of grpo_lightning ({words}).") from error
    return rest


def _contents(folder: Path) -> Metadata:
    with (folder / CONTENTS).open("rb") as file:
        contents = _ContentsUnpickler(file).load()
    if not isinstance(contents, Metadata):
        raise pickle.UnpicklingError(f"it holds a {type(contents).__name__}")
    return contents


class _FolderReader(FileSystemReader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list of contents, of data alone."""
        contents = _contents(self._folder)
        contents.storage_meta = contents.storage_meta or StorageMeta()
        contents.storage_meta.load_id = self.load_id
        return contents


class _ValuePlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """A value beside the tensors, such as a learning rate, of plain data alone."""
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
